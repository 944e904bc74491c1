"""Pictures and captions that are not what they seem, of real files and through whole runs."""

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alignkit import PairRecord
from alignkit.data.pictures import decode
from alignkit.testing import ToyPairs
from alignkit_sources.folders import PairFolders
from tests.integration.conftest import alignkit, pipeline

__all__ = ["alignkit", "pipeline"]
Run = Callable[..., tuple[int, str, str]]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A whole black picture of one bit a pixel."""
    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = (chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


BOMB = """
import sys
from pathlib import Path
from alignkit.data.pictures import decode

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

data = Path(sys.argv[1]).read_bytes()
before = memory()
try:
    decode(data, (16, 16), "pair 7")
except ValueError as error:
    print(error)
print(memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="/proc tells how much memory was in use")
def test_a_whole_bomb_takes_no_memory(tmp_path: Path) -> None:
    """30,000 x 30,000 pixels in 600 KB, 2.7 GB as RGB: every pixel is there, and none is read."""
    data = png(30_000, 30_000)
    assert len(data) < 1_000_000
    (tmp_path / "bomb.png").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(tmp_path / "bomb.png")], capture_output=True, text=True, check=True
    )
    said, memory = done.stdout.splitlines()
    assert said.startswith("pair 7: its picture ")
    assert "pixels" in said
    assert int(memory) < 20_000_000


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_text_that_unfolds_to_a_hundred_megabytes_is_refused(kind: bytes) -> None:
    text = zlib.compress(b"a" * 100_000_000, 9)
    assert len(text) < 200_000
    head = b"Comment\0\0" if kind == b"zTXt" else b"Comment\0\1\0\0\0"
    with pytest.raises(ValueError, match=r"^pair 7: its picture cannot be read"):
        decode(png(16, 16, chunk(kind, head + text)), (16, 16), "pair 7")


def test_pictures_are_what_they_hold_and_not_what_they_are_called(tmp_path: Path) -> None:
    for side, shade in (("w", 250), ("l", 5)):
        (tmp_path / side).mkdir()
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(tmp_path / side / "1.jpg", "PNG")
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(buffer, "GIF")
        (tmp_path / side / "2.png").write_bytes(buffer.getvalue())
    for name in ("1", "2"):
        (tmp_path / "w" / f"{name}.txt").write_text("a red square")
    source = PairFolders(str(tmp_path))
    assert len(source) == 2
    for index in range(2):
        record = source[index]
        assert record.image_0 is not None
        image_CHW = decode(record.image_0, (16, 16), "it").image_CHW
        assert torch.equal(image_CHW[0], torch.full((16, 16), 250 / 127.5 - 1))


CAPTIONS = (
    "",
    " \n",
    "w" * 10_000,
    "\u65e5\u672c\u8a9e \U0001f34f \u202eelppa",
    "a\0b",
    "\u0130\u0301" * 300,
)


class OddPairs(ToyPairs):
    """Pairs of which each has an odd caption, and every fourth is twice the same picture."""

    def __getitem__(self, index: int) -> PairRecord:
        record = super().__getitem__(index)
        record = record._replace(prompt=self.prompts()[index])
        return record if index % 4 else record._replace(image_1=record.image_0)

    def prompts(self) -> list[str]:
        return [CAPTIONS[index % len(CAPTIONS)] for index in range(self.count)]


CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}, caption_dropout: 0.2}}
optimizer: {{name: AdamW, lr: 1.0e-4}}
data:
  train: {{class_path: tests.faults.test_inputs.OddPairs}}
  validation: {{class_path: tests.faults.test_inputs.OddPairs, init_args: {{count: 10}}}}
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 6, images_per_prompt: 1, num_steps: 1}}
samples: {{num_prompts: 2, num_steps: 1}}
trainer: {{accelerator: cpu, devices: 1, max_steps: 6, log_every_n_steps: 1, enable_progress_bar: false}}
"""


def test_odd_captions_ties_and_twins_train_and_are_told(
    alignkit: Run,
    pipeline: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "odd.yaml").write_text(CONFIG.format(pipeline=pipeline))
    code, _, err = alignkit("fit", "--config", "odd.yaml", "--run", "run")
    assert code == 0, err
    weights = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["data"] == {"pairs": 48, "ties": 12, "ties_policy": "drop"}
    code, out, err = alignkit("data", "check", "odd.yaml", "--json")
    found: dict[str, Any] = {
        finding["name"]: finding
        for split in json.loads(out)["splits"].values()
        for finding in split["findings"]
    }
    assert code == 1, err
    assert {"identical-bytes", "empty-caption", "long-caption"} <= found.keys()
