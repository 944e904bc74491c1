"""Rows of files that the safetensors library itself wrote."""

import json
import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit.data.cache import shards
from alignkit.data.cache.shards import METADATA, Shards, header_of, mapped

SIZE, COUNT = 4, 10


def written(folder: Path, dtype: torch.dtype = torch.float16) -> tuple[Shards, Tensor]:
    """Ten rows in three files, and what they hold."""
    row_N3 = torch.arange(COUNT * 3).view(COUNT, 3).to(dtype)
    for number in range(3):
        part = row_N3[number * SIZE : (number + 1) * SIZE]
        tensors = {"row": part.contiguous(), "number": torch.arange(len(part)) + number * SIZE}
        path = folder / f"kind-{number:05d}.safetensors"
        save_file(tensors, path, metadata={METADATA: json.dumps({"cache": "mine"})})
    return Shards(folder, "kind", size=SIZE, count=COUNT, identity="mine"), row_N3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_in_the_order_asked_for_out_of_any_file(tmp_path: Path, dtype: torch.dtype) -> None:
    found, row_N3 = written(tmp_path, dtype)
    asked = [9, 0, 4, 4, 7, 3, 8]
    read = found.read("row", asked)
    assert read.dtype == dtype
    assert torch.equal(read, row_N3[asked])
    assert found.read("number", asked).tolist() == asked
    assert [list(rows) for rows in found.rows()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_more_files_than_may_be_open_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_OPEN", 1)
    found, row_N3 = written(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for _ in range(3):
        assert torch.equal(found.read("row", list(range(COUNT))), row_N3)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_row_is_read_once_into_its_place_and_a_file_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of the system for a row, of its bytes alone: nothing is read ahead, mapped or copied."""
    found, row_N3 = written(tmp_path)
    read, opened = Mock(side_effect=os.preadv), Mock(side_effect=os.open)
    monkeypatch.setattr(shards.os, "preadv", read)
    monkeypatch.setattr(shards.os, "open", opened)
    rows = [9, 0, 4, 4]
    for _ in range(2):
        assert torch.equal(found.read("row", rows), row_N3[rows])
    assert opened.call_count == 3
    sizes = [len(part) for _, (part,), _ in (call.args for call in read.call_args_list)]
    assert sizes == [row_N3[0].nbytes] * 2 * len(rows)


def test_it_can_be_handed_to_another_process(tmp_path: Path) -> None:
    """Descriptors stay where they are: those of a copy are its own."""
    found, row_N3 = written(tmp_path)
    found.read("row", [0])
    assert torch.equal(pickle.loads(pickle.dumps(found)).read("row", [5]), row_N3[[5]])


def test_files_that_are_missing_cut_off_or_of_another_cache_are_named(tmp_path: Path) -> None:
    found, _ = written(tmp_path)
    assert found.missing() == []
    whole = found.path(1).read_bytes()
    for broken, fault in ((whole[:-1], "no whole safetensors file"), (b"", "no whole"), (b"{}", "no whole")):
        found.path(1).write_bytes(broken)
        fresh = Shards(tmp_path, "kind", size=SIZE, count=COUNT, identity="mine")
        assert [number for number, _ in fresh.missing()] == [1]
        assert fault in fresh.fault(1)
        with pytest.raises(ValueError, match=r"kind-00001.safetensors is no whole safetensors file"):
            fresh.read("row", [4])
    found.path(1).unlink()
    fresh = Shards(tmp_path, "kind", size=SIZE, count=COUNT, identity="mine")
    assert fresh.fault(1) == f"{found.path(1)} is missing"
    other = Shards(tmp_path, "kind", size=SIZE, count=COUNT, identity="yours")
    assert other.fault(0) == f"{found.path(0)} is of another cache"


def test_a_file_that_shrinks_under_a_run_is_named(tmp_path: Path) -> None:
    found, _ = written(tmp_path)
    found.read("row", [0])
    os.truncate(found.path(0), found.path(0).stat().st_size - 40)
    with pytest.raises(ValueError, match=r"kind-00000.safetensors ends before row 3 of 'row'"):
        found.read("row", [3])


def test_what_it_writes_the_library_reads(tmp_path: Path) -> None:
    found, row_N3 = written(tmp_path)
    first = found.path(0).read_bytes()
    found.write(0, load_file(found.path(0)))
    assert found.path(0).read_bytes() == first
    assert torch.equal(load_file(found.path(0))["row"], row_N3[:SIZE])
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_mapped_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {
        "numbers": torch.arange(6).view(3, 2),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "none": torch.empty(0, 2, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "table.safetensors")
    found = mapped(tmp_path / "table.safetensors")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    assert header_of(tmp_path / "table.safetensors").told == {}
