"""What each reader reads without complaint: where fuzzing starts. Made anew each time."""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from alignkit.checkpoints import write
from alignkit.checkpoints.values import taken_apart
from alignkit.configfiles import packaged_configs
from alignkit.data.cache.manifest import Manifest, Origin
from alignkit.data.cache.table import DIGEST, as_tensors, tabled
from alignkit.evaluation.contents import Evaluated, Report
from alignkit.evaluation.promptfiles import READERS as PROMPT_FILES
from alignkit.evaluation.report import to_json
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.comparisons import comparisons
from alignkit.testing import ToyPairs
from alignkit_adaptive_dpo.source import Flips
from alignkit_ppd.embeddings import Judgements, Sets, Settings, UserEmbeddings
from alignkit_rewards import protocol
from tests.fuzz.readers import BANK
from tests.plugins.sources.formats import add, encoded

STATE = {
    "global_step": 7,
    "state_dict": {"a": torch.tensor([1.0, 2.0])},
    "odd": [(1, None), float("nan"), {1: True}],
}


def jsons(*rows: Any) -> bytes:
    """An object a line."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def encodings() -> list[bytes]:
    """A picture in every format, with and without Exif, and an animation."""
    image = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3))
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        (kind, image, {}) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds += [(kind, image, {"exif": exif}) for kind in ("JPEG", "PNG", "TIFF")]
    kinds += [
        ("PNG", image.convert("P"), {"transparency": 3}),
        ("PNG", Image.fromarray(np.full((4, 4), 40_000, np.uint16)), {}),
        ("GIF", image.convert("P"), {"save_all": True, "append_images": [image.convert("P")]}),
        ("TIFF", image.convert("CMYK"), {"compression": "tiff_lzw"}),
    ]
    found = []
    for kind, picture, options in kinds:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found.append(file.getvalue())
    return found


def tables() -> list[bytes]:
    """Parquet files of every source."""
    image = encoded(0, side=4)
    rows: list[dict[str, Any]] = [
        {
            "caption": "a pear",
            "jpg_0": image,
            "jpg_1": image,
            "label_0": 1.0,
            "user_id": 3,
            "has_label": True,
        },
        {
            "prompt": "a pear",
            "chosen": {"bytes": image, "path": None},
            "rejected": {"bytes": image, "path": ""},
        },
        {"text": "a pear", "image": image},
    ]
    found = []
    for place, row in enumerate(rows):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([row, row]), file)
        found.append(bytes([place]) + file.getvalue())
    return found


def prompt_files() -> list[bytes]:
    """A file of every kind, behind the byte that names it."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"prompt": "a pear", "category": "fruit"}]), file)
    contents = {
        ".txt": "a pear\nein Äpfelchen\n".encode(),
        ".jsonl": jsons({"prompt": "a pear", "category": "fruit"}, {"prompt": "猫"}),
        ".json": b'["a pear", "two pears"]',
        ".csv": b'prompt,category\n"a, pear",fruit\n',
        ".tsv": b"Prompt\tCategory\na pear\tfruit\n",
        ".parquet": file.getvalue(),
    }
    return [bytes([place]) + contents[kind] for place, kind in enumerate(PROMPT_FILES)]


def archives() -> list[bytes]:
    """Tar files in both layouts, of several kinds of header."""
    said = json.dumps({"prompt": "a pear", "label_0": 1, "user": "x"}).encode()
    layouts = (
        {"jpg_0": b"0", "jpg_1": b"1", "json": said},
        {"jpg_0.jpg": b"0", "jpg_1.jpg": b"1", "label_0.txt": b"0.5", "original_prompt.txt": b"a pear"},
    )
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for layout in layouts:
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
                # a long name needs a header of its own
                for name in ("a", "folder/" * 12 + "b"):
                    for field, data in layout.items():
                        add(archive, f"{name}.{field}", data)
            found.append(file.getvalue())
    return found


def saved_checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "x.ckpt"), STATE)
        return Path(folder, "x.ckpt").read_bytes()


def reports() -> list[bytes]:
    scores = {
        name: Scores({"Taste": np.array([[shift], [0.5]])}, np.ones((2, 1, 1)))
        for name, shift in (("base", 0.0), ("dpo", 1.0))
    }
    results = Results((Prompt("a pear"), Prompt("two", "fruit")), (0,), scores)
    models = tuple(Evaluated(name, "x") for name in scores)
    report = Report(
        "x", ("better",), models, comparisons(results, models), results, {"base": (("a", "b"),)}, {}
    )
    return [to_json(report).encode()]


def cache_tables() -> list[bytes]:
    pairs = ToyPairs(3)
    digest_P2D = np.arange(3 * 2 * DIGEST, dtype=np.uint8).reshape(3, 2, DIGEST)
    return [save(as_tensors(tabled({"train": pairs}, {"train": digest_P2D})))]


def user_embeddings() -> list[bytes]:
    sets = Sets(
        torch.ones(1, 2, 4),
        torch.zeros(1).long(),
        torch.zeros(1, 1).long(),
        torch.zeros(1).bool(),
        ("a pear",),
    )
    judgements = Judgements(
        *torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64), torch.ones(1) > 0
    )
    found = UserEmbeddings(["x"], sets, judgements, Settings("X", 1, 1, 0))
    with tempfile.TemporaryDirectory() as folder:
        found.write(Path(folder, "x.safetensors"))
        return [Path(folder, "x.safetensors").read_bytes()]


ROW = {"prompt": "a pear", "image_0": "x.png", "image_1": "y.png", "label_0": 0.5, "user": "x", "id": 3}
RANKED = {"prompt": "a pear", "image_path": ["a.jpg", "b.jpg"], "human_preference": [1, 0], "user_hash": "x"}
TEST = {"prompt": "a pear", "image_path": ["a.jpg", "b.jpg", "c.jpg"], "rank": [1, 2, 2]}
DIRECT = {"prompt": "a pear", "path1": "a.jpg", "path2": "b.jpg"}
LISTED = {"prompt": "a pear", "image_path": "a.jpg", "prompt_id": "x", "rank": 1}
ORIGIN = Origin({"vae": "00"}, 512, "centre", {"train": "11"}, "F16")

SEEDS: Mapping[str, Callable[[], list[bytes]]] = {
    "picture": encodings,
    "tar": archives,
    "webdataset": archives,
    "webdataset_json": lambda: [jsons({"prompt": "a pear", "label_0": 1, "user": 5})],
    "json_lines": lambda: [jsons(ROW, {**ROW, "id": "b"}), jsons([ROW]), b"\xef\xbb\xbf" + jsons(ROW)],
    "hpdv2": lambda: [jsons([RANKED, RANKED]), jsons([TEST])],
    "hpdv3": lambda: [jsons([DIRECT, DIRECT])],
    "imagereward": lambda: [jsons([LISTED, {**LISTED, "rank": 2}])],
    "captions": lambda: [jsons({"file_name": "a.png", "text": "a pear"})],
    "caption": lambda: ["ein Äpfelchen\n".encode()],
    "prompts": prompt_files,
    "parquet": tables,
    "checkpoint": lambda: [saved_checkpoint()],
    "checkpoint_state": lambda: [json.dumps(taken_apart({**STATE, "state_dict": {}}, "x")[0]).encode()],
    "shards": lambda: [
        save({"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)}, {"alignkit": "{}"})
    ],
    "cache_table": cache_tables,
    "cache_manifest": lambda: [Manifest(ORIGIN, 4, 2, 2, 2, 64, 64).text().encode()],
    "bank_origin": lambda: [BANK.text().encode()],
    "bank": lambda: [
        save({"logp": torch.zeros(3, 2, 2)}, {"alignkit": json.dumps({"cache": BANK.identity})})
    ],
    "config": lambda: [
        packaged_configs()["dmpo.yaml"].read_bytes(),
        yaml.safe_dump({"a": [1, None]}).encode(),
    ],
    "report": reports,
    "reward_request": lambda: [protocol.request(torch.zeros(2, 3, 4, 4), ["a pear", "two"])],
    "reward_answer": lambda: [b'{"scores": [0.5, -1e3]}'],
    "flips": lambda: [jsons(Flips(0.5, 0, 3, 1, {"name": "x"}, "00", [1], [5])._asdict())],
    "embeddings": user_embeddings,
    "liked_pairs": lambda: [jsons({"prompt": "a pear", "chosen": "a.png", "rejected": "a.png"})],
    "processor": lambda: [
        jsons({"size": {"shortest_edge": 4}, "do_center_crop": True, "crop_size": 4, "resample": 3})
    ],
}


@cache
def seeds(name: str) -> list[bytes]:
    """Inputs of a reader."""
    return SEEDS[name]()
