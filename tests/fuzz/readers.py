"""Readers of files that others wrote, each as a function of bytes: a value or a documented error."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from alignkit import checkpoints
from alignkit.catalog import Catalog, CatalogError, discover
from alignkit.checkpoints.forms import step
from alignkit.components import PairSource
from alignkit.data.bank import manifest as bank_manifest
from alignkit.data.bank.store import Bank
from alignkit.data.cache.manifest import read_manifest
from alignkit.data.cache.shards import Shards, header_of, mapped
from alignkit.data.cache.table import Table
from alignkit.data.pictures import decode, picture_size
from alignkit.evaluation.promptfiles import READERS as PROMPT_FILES
from alignkit.evaluation.promptfiles import read_prompts
from alignkit.evaluation.report import from_json
from alignkit.evaluation.seen import judges_of
from alignkit.mistakes import UsageError, read_config
from alignkit.naming import absolute, expand_config
from alignkit.pairs.files import is_there
from alignkit_adaptive_dpo.source import read_flips
from alignkit_ppd.embeddings import read_embeddings
from alignkit_ppd.options import read_pairs
from alignkit_rewards import protocol
from alignkit_rewards.framing import processor_framing
from alignkit_sources.captioned import Captioned, CaptionedTable
from alignkit_sources.hpd import HPDv2, HPDv3
from alignkit_sources.imagereward import ImageRewardDB
from alignkit_sources.jsonlines import JSONLines
from alignkit_sources.pickapic import PickAPic
from alignkit_sources.tars import members, read_member
from alignkit_sources.trl import TRLPairs
from alignkit_sources.webdataset import WebDatasetPairs
from tests.fuzz import mutations

MAX_PIXELS = 2**20
# pairs of a source that are read
READ = 3


class Reader(NamedTuple):
    """What is fuzzed.

    Args:
        read: reads bytes, with an empty folder to put them into.
        errors: what it may raise.
        mutate: changes that its format survives.
        max_length: bytes of the longest input.
    """

    read: Callable[[bytes, Path], None]
    errors: tuple[type[Exception], ...] = (ValueError,)
    mutate: mutations.Mutate | None = None
    max_length: int = 4096


def check(reader: Reader, data: bytes, folder: Path) -> None:
    """Reads an input; anything but a value or a documented error is raised."""
    try:
        reader.read(data, folder)
    except reader.errors as error:
        told = str(error)
    else:
        return
    assert told.strip(), "an error says nothing"


def written(data: bytes, folder: Path, name: str) -> Path:
    """A file of the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def walk(source: PairSource) -> None:
    """Reads what a source says of all pairs, and the first of them."""
    count = len(source)
    assert count == len(source.labels()) == len(source.ids()) == len(source.users())
    assert all(0 <= label <= 1 for label in source.labels())
    assert all(isinstance(prompt, str) for prompt in source.prompts())
    assert len(set(source.ids())) == count
    for index in range(min(count, READ)):
        try:
            record = source[index]
        except (OSError, ValueError):  # such as of a picture that is not there
            continue
        assert isinstance(record.prompt, str)
        assert isinstance(record.image_0, bytes)


def picture(data: bytes, folder: Path) -> None:
    height, width = picture_size(data, "x", MAX_PIXELS)
    found = decode(data, (16, 24), "x", max_pixels=MAX_PIXELS)
    assert found.image_CHW.shape == (3, 16, 24)
    assert ((found.image_CHW >= -1) & (found.image_CHW <= 1)).all()
    assert found.frame_4[:2].tolist() == [height, width]


def tar(data: bytes, folder: Path) -> None:
    path = written(data, folder, "x.tar")
    for member in members(path, "x"):
        if not member.fault:
            assert len(read_member(str(path), member.start, member.size, "x")) == member.size


def webdataset(data: bytes, folder: Path) -> None:
    walk(WebDatasetPairs(str(written(data, folder, "x.tar"))))


def webdataset_json(data: bytes, folder: Path) -> None:
    """The tar file is right, what it says of a pair is not."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in {"a.jpg_0": b"", "a.jpg_1": b"", "a.json": data}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    webdataset(file.getvalue(), folder)


def json_lines(data: bytes, folder: Path) -> None:
    walk(JSONLines(str(written(data, folder, "x.jsonl"))))


def hpdv2(data: bytes, folder: Path) -> None:
    written(data, folder, "train.json")
    walk(HPDv2(str(folder)))


def hpdv3(data: bytes, folder: Path) -> None:
    walk(HPDv3(str(written(data, folder, "train.json"))))


def imagereward(data: bytes, folder: Path) -> None:
    written(data, folder, "metadata-train.parquet")
    written(data, folder, "images/train/train_1/train_1.json")
    walk(ImageRewardDB(str(folder)))


def captions(data: bytes, folder: Path) -> None:
    written(b"", folder, "a.png")
    written(data, folder, "metadata.jsonl")
    walk(Captioned(str(folder)))


def caption(data: bytes, folder: Path) -> None:
    written(b"", folder, "a.png")
    written(data, folder, "a.txt")
    walk(Captioned(str(folder)))


def prompts(data: bytes, folder: Path) -> None:
    """The first byte says by what its name ends."""
    kinds = list(PROMPT_FILES)
    kind = kinds[data[0] % len(kinds)] if data else ".txt"
    for prompt in read_prompts(written(data[1:], folder, f"x{kind}"), "x"):
        assert isinstance(prompt.text, str)
        assert isinstance(prompt.category, str)


def parquet(data: bytes, folder: Path) -> None:
    """The first byte says for which source."""
    sources = (PickAPic, TRLPairs, CaptionedTable)
    path = written(data[1:], folder, "x.parquet")
    judges_of(path)
    with suppress(ValueError):
        is_there(path, {"rewards": {"X": 1}})
    walk(sources[data[0] % len(sources) if data else 0](str(path)))


def checkpoint(data: bytes, folder: Path) -> None:
    path = written(data, folder, "x.ckpt")
    step(path)
    checkpoints.read(path)


def checkpoint_state(data: bytes, folder: Path) -> None:
    """A file with a right sha256, one tensor, and any text for its state."""
    told = {
        "__metadata__": {"sha256": "0" * 64, "state": data.decode("utf-8", "replace")},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    header = json.dumps(told, separators=(",", ":")).encode()
    blank = len(header).to_bytes(8, "little") + header + bytes(8)
    checkpoint(blank.replace(b"0" * 64, sha256(blank).hexdigest().encode(), 1), folder)


def shards(data: bytes, folder: Path) -> None:
    path = written(data, folder, "x-00000.safetensors")
    for name, entry in header_of(path).entries.items():
        found = Shards(folder, "x", size=entry.shape[0] if entry.shape else 1, count=1, identity="x")
        found._entries[0] = header_of(path).entries
        if entry.shape and entry.shape[0]:
            assert found.read(name, [0]).shape == (1, *entry.shape[1:])


def cache_table(data: bytes, folder: Path) -> None:
    path = written(data, folder, "x.safetensors")
    for array in mapped(path).values():
        assert array.size == prod(array.shape)
        array.sum()
    table = Table(path)
    assert len(list(table.prompts())) == table.num_prompts
    table.find("a pear")


def cache_manifest(data: bytes, folder: Path) -> None:
    written(data, folder, "cache.json")
    found = read_manifest(folder)
    assert found is not None
    assert len(found.identity) == 16


BANK = bank_manifest.Manifest({"the sampler": "x"}, {"train": 3}, {"train": 2}, 4)


def bank_origin(data: bytes, folder: Path) -> None:
    written(data, folder, "bank.json")
    found = bank_manifest.read_manifest(folder)
    assert found is not None
    assert all(bank_manifest.differences(found.origin, {"x": "y"}))
    assert len(found.identity) == 16


def bank(data: bytes, folder: Path) -> None:
    """What a right manifest speaks of."""
    written(BANK.text().encode(), folder, "bank.json")
    written(data, folder, "train-00000.safetensors")
    first_B = torch.zeros(1, dtype=torch.int64)
    assert Bank(folder).logp("train", first_B, first_B[None], first_B).shape == (1, 1)


@cache
def catalog() -> Catalog:
    return discover()


def config(data: bytes, folder: Path) -> None:
    said = read_config(written(data, folder, "x.yaml"), "x.yaml")
    absolute(expand_config(catalog(), said), "fit")


def report(data: bytes, folder: Path) -> None:
    from_json(data.decode())


def reward_request(data: bytes, folder: Path) -> None:
    image_NCHW, texts = protocol.pictures(data, MAX_PIXELS)
    assert len(image_NCHW) == len(texts) > 0


def reward_answer(data: bytes, folder: Path) -> None:
    assert len(protocol.scores(data, 2, "x")) == 2


def flips(data: bytes, folder: Path) -> None:
    found = read_flips(written(data, folder, "x.json"))
    assert len(found.rows) == len(found.ids)


def embeddings(data: bytes, folder: Path) -> None:
    read_embeddings(written(data, folder, "x.safetensors"))


def liked_pairs(data: bytes, folder: Path) -> None:
    written(b"", folder, "a.png")
    read_pairs(written(data, folder, "x.jsonl"), 1)


def processor(data: bytes, folder: Path) -> None:
    written(data, folder, "preprocessor_config.json")
    processor_framing(folder, "x")


READERS: Mapping[str, Reader] = {
    "picture": Reader(picture),
    "tar": Reader(tar, mutate=mutations.tar, max_length=20_480),
    "webdataset": Reader(webdataset, mutate=mutations.tar, max_length=20_480),
    "webdataset_json": Reader(webdataset_json, mutate=mutations.json_value),
    "json_lines": Reader(json_lines, mutate=mutations.json_lines),
    "hpdv2": Reader(hpdv2, mutate=mutations.json_value),
    "hpdv3": Reader(hpdv3, mutate=mutations.json_value),
    "imagereward": Reader(imagereward, mutate=mutations.json_value),
    "captions": Reader(captions, mutate=mutations.json_lines),
    "caption": Reader(caption),
    "prompts": Reader(prompts, mutate=mutations.behind_a_byte(mutations.json_lines)),
    "parquet": Reader(parquet, mutate=mutations.parquet, max_length=8192),
    "checkpoint": Reader(checkpoint, mutate=mutations.safetensors),
    "checkpoint_state": Reader(checkpoint_state, mutate=mutations.json_value),
    "shards": Reader(shards, mutate=mutations.safetensors),
    "cache_table": Reader(cache_table, mutate=mutations.safetensors),
    "cache_manifest": Reader(cache_manifest, mutate=mutations.json_value),
    "bank_origin": Reader(bank_origin, mutate=mutations.json_value),
    "bank": Reader(bank, mutate=mutations.safetensors),
    "config": Reader(config, (UsageError, CatalogError), mutate=mutations.json_value),
    "report": Reader(report, mutate=mutations.json_value, max_length=16_384),
    "reward_request": Reader(reward_request, mutate=mutations.json_value),
    "reward_answer": Reader(reward_answer, mutate=mutations.json_value),
    "flips": Reader(flips, mutate=mutations.json_value),
    "embeddings": Reader(embeddings, mutate=mutations.safetensors),
    "liked_pairs": Reader(liked_pairs, mutate=mutations.json_lines),
    "processor": Reader(processor, mutate=mutations.json_value),
}
