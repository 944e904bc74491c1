"""A cache through the command line: made, killed and completed, trained from, refused."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from alignkit import PairRecord, PairSource
from alignkit.data.cache import manifest, table
from alignkit.data.cache.manifest import Manifest, Origin
from alignkit.data.cache.store import FRAME, MOMENTS, TEXT, shards_of
from alignkit.data.cache.table import DIGEST, as_tensors, source_hash, tabled
from alignkit.data.pictures import MAX_PIXELS, framed
from alignkit.files import write_tensors, write_text
from alignkit.testing import ToyBackbone
from alignkit.testing.pipelines import tiny_stable_diffusion
from alignkit_diffusers.loading import PipelineFolder
from alignkit_diffusers.stable_diffusion import StableDiffusion
from tests.runs import environment

Run = Callable[..., tuple[int, str, str]]
CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: {backbone}, path: {pipeline}, caption_dropout: 0.2}}
optimizer: {{name: AdamW, lr: 1.0e-4}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  validation: {{class_path: tests.integration.conftest.NoisyPairs, init_args: {{count: 20}}}}
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 2, images_per_prompt: 1, num_steps: 2}}
samples: {{num_prompts: 0}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 8
  log_every_n_steps: 1
  enable_progress_bar: false
"""


def written(folder: Path, pipeline: Path, backbone: str = "StableDiffusion") -> str:
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(pipeline=pipeline, backbone=backbone))
    return str(path)


@pytest.fixture
def config(pipeline: Path, tmp_path: Path) -> str:
    return written(tmp_path, pipeline)


def done(alignkit: Run, *arguments: str) -> str:
    code, out, err = alignkit(*arguments)
    assert code == 0, err
    return out + err


def weights(run: str) -> dict[str, Tensor]:
    return load_file(Path(run) / "unet" / "diffusion_pytorch_model.safetensors")


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def apart(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in processes of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(OMP_NUM_THREADS=str(torch.get_num_threads())),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("backbone", ["StableDiffusion", "StableDiffusionXL"])
def test_a_cached_run_trains_the_same_weights_and_loads_no_encoder(
    alignkit: Run,
    pipeline: Path,
    xl_pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
) -> None:
    """To 5e-6, of moves of 2.5e-4, with captions dropped; drawing asks for the decoder, no more.

    Not bit for bit: an encoder rounds a picture otherwise in a batch of another size, and Adam makes steps of
    one size out of gradients of any.
    """
    config = written(tmp_path, pipeline if backbone == "StableDiffusion" else xl_pipeline, backbone)
    short = ("--config", config, "--optimizer.lr", "5e-5", "--trainer.max_steps", "5")
    done(alignkit, "fit", *short, "--run", "uncached")
    done(alignkit, "cache", "--config", config, "--out", "cache", "--dtype", "float32")
    loaded: list[str] = []
    for name in ("network", "plain"):
        original = getattr(PipelineFolder, name)

        def noted(
            self: PipelineFolder, kind: object, part: str, original: Callable[..., Any] = original
        ) -> Any:
            loaded.append(part)
            return original(self, kind, part)

        monkeypatch.setattr(PipelineFolder, name, noted)
    none = ("--evaluation.max_prompts", "0")
    done(alignkit, "fit", *short, "--run", "cached", "--data.cache", "cache", *none)
    assert {"unet"} <= set(loaded) <= {"unet", "scheduler"}
    loaded.clear()
    done(alignkit, "fit", *short, "--run", "drawn", "--data.cache", "cache")
    assert "vae" in loaded
    assert not any(part.startswith(("text_encoder", "tokenizer")) for part in loaded)
    expected = weights("uncached")
    for run in ("cached", "drawn"):
        found = weights(run)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert_close(found[name], weight, rtol=0, atol=5e-6)
    assert Path("drawn", "before_after.png").is_file()


def test_half_precision_rounds_what_it_trains_on(alignkit: Run, config: str, pipeline: Path) -> None:
    """The way that the weights went differs by a few hundredths of its length at most, and by something."""
    none = ("--evaluation.max_prompts", "0")
    done(alignkit, "fit", "--config", config, "--run", "uncached", *none)
    done(alignkit, "cache", "--config", config, "--out", "cache")
    done(alignkit, "fit", "--config", config, "--data.cache", "cache", "--run", "cached", *none)
    start = weights(str(pipeline))
    ways = [
        torch.cat([(found[name] - start[name]).flatten() for name in sorted(start)])
        for found in (weights("uncached"), weights("cached"))
    ]
    assert 0 < float((ways[0] - ways[1]).norm() / ways[0].norm()) < 0.03


def test_a_stale_cache_is_refused_in_words(alignkit: Run, config: str, tmp_path: Path) -> None:
    done(alignkit, "cache", "--config", config, "--out", "cache")
    before = files("cache")
    other = written(tmp_path, tiny_stable_diffusion(tmp_path / "other", seed=1))
    for options, told in (
        ((), "the model's text_encoder has changed; the model's vae has changed"),
        (("--data.resolution", "24"), "resolution is 16 in the cache and 24 here"),
        (("--data.train.init_args.count", "30"), "data.train has changed"),
        (("--data.flip", "0.5"), "with it, crop_shift and flip must be 0"),
        (("--data.cache", "nowhere"), "'nowhere' holds no cache"),
    ):
        code, _, err = alignkit("fit", "--config", other, "--data.cache", "cache", *options)
        assert code == 2
        assert told in err
        assert "Traceback" not in err
        assert not Path("runs").exists()
    code, _, err = alignkit("cache", "--config", other, "--out", "cache")
    assert code == 2
    assert "--out cache: there is another cache in that folder: the model's text_encoder has changed" in err
    assert files("cache") == before


KILLED = """
import os, signal, sys
from alignkit.cli import main
replace = os.replace
def killed(source, target):
    if str(target).endswith("pictures-00002.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
main(["--trust", "tests", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_killed_command_is_completed_by_the_same_command_whatever_the_processes(
    alignkit: Run, config: str, tmp_path: Path
) -> None:
    command = ["cache", "--config", config, "--file-rows", "16", "--batch-size", "8"]
    done(alignkit, *command, "--out", "straight")
    whole = files("straight")
    assert sum(name.startswith("pictures-") for name in whole) == 8
    killed = apart(tmp_path, "-c", KILLED, *command, "--out", "cache")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 0 < sum(name.startswith("pictures-") for name in files("cache")) < 8
    code, _, err = alignkit("fit", "--config", config, "--data.cache", "cache")
    assert code == 2
    assert "is not finished: 7 files are missing" in err
    module = ("-m", "alignkit.cli", "--trust", "tests")
    shared = apart(tmp_path, *module, *command, "--out", "cache", "--devices", "2")
    assert shared.returncode == 0, shared.stderr
    found = {name: content for name, content in files("cache").items() if not name.startswith(".")}
    assert found == whole
    both = apart(tmp_path, *module, *command, "--out", "both", "--devices", "2")
    assert both.returncode == 0, both.stderr
    assert files("both") == whole
    few = apart(tmp_path, *module, "cache", "--config", config, "--out", "few", "--devices", "2")
    assert few.returncode == 0, few.stderr  # a file of each kind: the second process has none
    assert len(files("few")) == 4


def test_it_says_what_it_does_and_what_is_wrong_with_options(alignkit: Run, config: str) -> None:
    code, out, _ = alignkit("cache", "--help")
    assert code == 0
    for said in ("--data.cache FOLDER", "--dtype", "float16 to 11 bits", "--yes", "--devices", "killed"):
        assert said in out
    mistakes: Sequence[tuple[tuple[str, ...], str]] = (
        (("--config", config), "--out: give a folder for the cache, or a config that has data.cache"),
        (("--config", config, "--out", "c", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--config", config, "--out", "c", "--dtype", "int8"), "invalid choice: 'int8'"),
        (("--config", "nowhere.yaml", "--out", "c"), "no config 'nowhere.yaml'"),
        (("--out", "c"), "--config"),
    )
    for options, told in mistakes:
        code, _, err = alignkit("cache", *options)
        assert (code, told in err) == (2, True), err
    assert not Path("c").exists()


def test_parts_are_told_apart_by_their_files_without_loading_them(tmp_path: Path, pipeline: Path) -> None:
    """A copy elsewhere is the same; another scheduler or UNet does not matter; one other weight does."""
    known = StableDiffusion(str(pipeline)).encoder_hashes()
    assert sorted(known) == ["reading of prompts", "text_encoder", "tokenizer", "vae"]
    copy = tiny_stable_diffusion(tmp_path / "copy", "v_prediction")
    (copy / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant that is not read")
    assert StableDiffusion(str(copy)).encoder_hashes() == known
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = StableDiffusion(str(copy)).encoder_hashes()
    assert {part for part in known if changed[part] != known[part]} == {"vae"}


MANY = """
import sys, time
from pathlib import Path
import lightning.pytorch as pl
import torch
from tests.integration.test_cache import Many
from alignkit.data import AlignData
from alignkit.module import AlignModule
from alignkit.testing import ToyBackbone
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise

class First(pl.Callback):
    def on_train_batch_start(self, *_):
        self.at = getattr(self, "at", None) or time.monotonic()

began, first = time.monotonic(), First()
data = AlignData(Many(int(sys.argv[1])), cache=sys.argv[2], batch_size=64, resolution=16)
optimizer = lambda weights: torch.optim.SGD(weights, lr=1e-3)
module = AlignModule(DiffusionDPO(), SharedNoise(), ToyBackbone(), optimizer)
options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
pl.Trainer(accelerator="cpu", devices=1, max_steps=60, use_distributed_sampler=False,
           enable_model_summary=False, callbacks=[first], **options).fit(module, data)
pages = int(Path("/proc/self/statm").read_text().split()[1])
print(pages, first.at - began)
"""


class Many(PairSource):
    """Any number of pairs, whose pictures cannot be read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> PairRecord:
        raise AssertionError("a cached run reads no record")

    def labels(self) -> list[float]:
        return [1.0] * self.count

    def prompts(self) -> list[str]:
        return [f"a picture of thing {index // 4}" for index in range(self.count)]

    def users(self) -> list[str]:
        return [f"user {index % 50}" for index in range(self.count)]

    def ids(self) -> list[int]:
        return list(range(self.count))


def cached_without_pictures(folder: Path, count: int) -> None:
    """A cache as if every pair had two pictures of its own."""
    sources = {"train": Many(count)}
    digest_P2D = np.random.default_rng(0).integers(1, 256, size=(count, 2, DIGEST), dtype=np.uint8)
    tensors = tabled(sources, {"train": digest_P2D})
    hashes = {split: source_hash(source) for split, source in sources.items()}
    origin = Origin(ToyBackbone().encoder_hashes(), 16, framed(MAX_PIXELS), hashes, "float16")
    prompts = len(tensors["prompts.ends"])
    planned = Manifest(origin, 2 * count, prompts, 1024, 1024, 2 * 3 * 8 * 8 * 2 + 32, 4 * 4 * 2)
    write_tensors(folder / table.FILE, as_tensors(tensors), {})
    write_text(folder / manifest.FILE, planned.text())
    pictures, texts = shards_of(folder, planned)
    moments = {MOMENTS: torch.randn(1024, 2, 3, 8, 8).half(), FRAME: torch.ones(1024, 4, dtype=torch.int64)}
    for number, rows in enumerate(pictures.rows()):
        pictures.write(number, {name: value[: len(rows)] for name, value in moments.items()})
    for number, rows in enumerate(texts.rows()):
        texts.write(number, {TEXT: torch.randn(len(rows), 4, 4).half()})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_a_hundred_times_as_many_cached_pairs_take_no_more_memory(tmp_path: Path) -> None:
    """Within 5 %, of 1,000 and 100,000 pairs, whose latents and texts are 1 MB and 100 MB on disk."""
    pages = {}
    for count in (1000, 100_000):
        folder = tmp_path / str(count)
        cached_without_pictures(folder, count)
        done = apart(tmp_path, "-c", MANY, str(count), str(folder))
        assert done.returncode == 0, done.stderr
        pages[count] = int(done.stdout.split()[-2])
    assert pages[100_000] < 1.05 * pages[1000]
