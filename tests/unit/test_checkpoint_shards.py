"""A checkpoint as a folder of shards: saved by two processes, read by any number, held to its manifest."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, distributed, multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from alignkit.checkpoints import (
    CheckpointFiles,
    UnsavedError,
    kept,
    link,
    loaded,
    read,
    saved,
    shards,
    tidy,
    write,
)

WEIGHTS = {
    "policy.weight": torch.arange(15.0).view(5, 3),  # three rows and two
    "policy.bias": torch.tensor([2.5]),  # one row and none
    "policy.half": torch.linspace(-1, 1, 8).view(2, 2, 2).to(torch.bfloat16),
}
WHOLE = {"count": torch.tensor(3), "mask": torch.tensor([True, False])}
NAMES = [
    "manifest.json",
    "shard-00001-of-00002.safetensors",
    "shard-00002-of-00002.safetensors",
    "state.json",
]


def state(step: int, weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "global_step": step,
        "state_dict": weights,
        "callbacks": {"EMA": {"average": {k: v + 1 for k, v in weights.items()}, "rank": (0, None)}},
        **WHOLE,
    }


def alone(step: int) -> dict[str, Any]:
    """What one process would have of it."""
    return state(step, WEIGHTS)


def assert_equal(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_equal(found[key], value)
    elif isinstance(wanted, Tensor):
        found = found.full_tensor() if isinstance(found, DTensor) else found
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    else:
        assert type(found) is type(wanted)
        assert found == wanted


def _refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, UnsavedError) as error:
        return str(error)
    return "nothing was refused"


def _worker(rank: int, folder: str) -> None:
    """Saves and reads with another process, and tells what it was refused."""
    home, told = Path(folder), {}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    shared = {k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in WEIGHTS.items()}
    mine = {**state(7, shared), "count": torch.tensor(3 + rank)}  # the first one's is saved
    write(home / "run" / "step=7.ckpt", mine)
    found = read(home / "run" / "step=7.ckpt", mesh)
    assert isinstance(found["state_dict"]["policy.weight"], DTensor)
    assert found["state_dict"]["policy.weight"].to_local().shape == (3 - rank, 3)
    assert_equal(found, alone(7))
    _replace(home, mesh, mine)
    told["full"] = _full(home, rank, mine)
    told["damaged"] = _damaged(home, rank, mesh)
    (home / f"{rank}.json").write_text(json.dumps(told))
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # now and then threads of gloo abort an interpreter that goes on to its end


def _replace(home: Path, mesh: DeviceMesh, mine: dict[str, Any]) -> None:
    """Saves over a file and over a folder of the same name."""
    for step in (8, 9):
        path = home / "replaced" / "x.ckpt"
        if step == 8 and mesh.get_rank() == 0:
            write(path, {"global_step": 1, "state_dict": {}, "callbacks": {}})
        distributed.barrier()
        write(path, {**mine, "global_step": step})
        assert_equal(read(path, mesh), alone(step))
        distributed.barrier()
    assert os.listdir(home / "replaced") == ["x.ckpt"]


def _full(home: Path, rank: int, mine: dict[str, Any]) -> str:
    """The second process has no room for its share."""
    path, stream = home / "run" / "step=7.ckpt", shards.stream

    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    shards.stream = full if rank else stream
    told = _refusal(lambda: write(path, {**mine, "global_step": 8}))
    shards.stream = stream
    distributed.barrier()
    assert_equal(read(path), alone(7))
    return told


def _damaged(home: Path, rank: int, mesh: DeviceMesh) -> str:
    path = home / "damaged.ckpt"
    if rank == 0:
        shutil.copytree(home / "run" / "step=7.ckpt", path)
        flip(path / NAMES[2], -1)
    distributed.barrier()
    return _refusal(lambda: read(path, mesh))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(_worker, (str(folder),), nprocs=2)
    return folder


@pytest.fixture
def path(saved_by_two: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "step=7.ckpt"
    shutil.copytree(saved_by_two / "run" / "step=7.ckpt", path)
    return path


def test_what_two_processes_saved_is_read_by_one(path: Path) -> None:
    assert sorted(os.listdir(path)) == NAMES
    assert_equal(read(path), alone(7))
    assert_equal(CheckpointFiles().load_checkpoint(path), alone(7))
    assert shards.told(path, "global_step") == 7
    assert shards.told(path, "config") is None


def test_each_process_saved_its_share_and_nothing_is_pickled(path: Path) -> None:
    with safe_open(path / NAMES[1], "pt") as first, safe_open(path / NAMES[2], "pt") as second:
        assert torch.equal(first.get_tensor("state_dict/policy.weight"), WEIGHTS["policy.weight"][:3])
        assert torch.equal(second.get_tensor("state_dict/policy.weight"), WEIGHTS["policy.weight"][3:])
        assert "state_dict/policy.bias" not in second.keys()  # noqa: SIM118
        assert "count" not in second.keys()  # noqa: SIM118
    for name in NAMES:
        assert not (path / name).read_bytes().startswith((b"\x80", b"PK"))


def test_its_manifest_is_that_of_sha256sum(path: Path) -> None:
    import hashlib

    files = json.loads((path / "manifest.json").read_text())["files"]
    assert sorted(files) == NAMES[1:]
    for name, told in files.items():
        content = (path / name).read_bytes()
        assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_full_disk_of_one_process_is_refused_in_both_and_keeps_what_was_there(saved_by_two: Path) -> None:
    for rank in range(2):
        told = json.loads((saved_by_two / f"{rank}.json").read_text())["full"]
        assert told.startswith(f"cannot save {saved_by_two}/run/step=7.ckpt, ")
        assert "process 1: No space left on device\nWhat was saved before is as it was" in told
    assert os.listdir(saved_by_two / "run") == ["step=7.ckpt"]


def test_damage_that_one_process_finds_is_refused_in_both(saved_by_two: Path) -> None:
    for rank in range(2):
        told = json.loads((saved_by_two / f"{rank}.json").read_text())["damaged"]
        assert told.endswith(f"damaged.ckpt is damaged or cut off: {NAMES[2]} has another sha256")


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_byte_and_every_truncation_is_noticed(path: Path, name: str) -> None:
    content = (path / name).read_bytes()
    for place in range(0, len(content), 7):
        flip(path / name, place)
        with pytest.raises(ValueError, match=r"step=7\.ckpt is damaged"):
            read(path)
        (path / name).write_bytes(content[:place])
        with pytest.raises(ValueError, match=r"step=7\.ckpt is damaged"):
            read(path)
        (path / name).write_bytes(content)
    assert_equal(read(path), alone(7))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "manifest.json",
            r"step=7\.ckpt is no checkpoint of alignkit, or not a whole one: there is no manifest",
        ),
        ("state.json", r"step=7\.ckpt is damaged: state\.json is missing"),
        (NAMES[2], r"step=7\.ckpt is damaged: shard-00002-of-00002\.safetensors is missing"),
    ],
)
def test_missing_file_is_noticed(path: Path, name: str, told: str) -> None:
    (path / name).unlink()
    with pytest.raises(ValueError, match=told):
        read(path)


def test_file_that_nobody_lists_is_not_read(path: Path) -> None:
    shutil.copy(path / NAMES[2], path / "shard-00003-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"shard-00003-of-00002\.safetensors is not in its manifest\.json"):
        read(path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ""])
def test_manifest_cannot_name_files_elsewhere(path: Path, name: str) -> None:
    (path / "manifest.json").write_bytes(shards._manifest({shards._Written(name, 1, "0" * 64)}))
    with pytest.raises(ValueError, match=r"step=7\.ckpt is damaged"):
        read(path)


def test_damaged_last_falls_back_loudly_between_folders_and_files(path: Path) -> None:
    newer, older = path.with_name("step=9.ckpt"), path.with_name("step=3.ckpt")
    shutil.copytree(path, newer)
    write(older, {"global_step": 3, "state_dict": {}, "callbacks": {}})
    link(path.with_name("last.ckpt"), newer)
    assert loaded(path.with_name("last.ckpt"), "--ckpt_path").path == newer
    flip(newer / NAMES[1], -1)
    with pytest.warns(
        UserWarning, match=r"last\.ckpt is damaged .* GOING BACK to .*, step=7\.ckpt, .* step 7"
    ):
        assert loaded(path.with_name("last.ckpt"), "--ckpt_path").path == path
    with pytest.warns(UserWarning, match=r"GOING BACK to .*step=7"):
        assert_equal(
            saved(path.with_name("last.ckpt"), "--model", averaged=False).weights["bias"],
            WEIGHTS["policy.bias"],
        )
    CheckpointFiles().remove_checkpoint(path)
    with pytest.warns(UserWarning, match=r"GOING BACK to .*, step=3\.ckpt, .* step 3"):
        assert loaded(path.with_name("last.ckpt"), "--ckpt_path").state["global_step"] == 3
    assert kept(path.parents[1]) == [older, newer]


def test_what_a_killed_process_left_is_tidied(path: Path) -> None:
    """Half of a folder; and a folder that was put aside for one that never came."""
    half = path.with_name(f".{path.name}.partial")
    shutil.copytree(path, half)
    os.rename(path, path.with_name(f".{path.name}.replaced.partial"))
    tidy(path.parent)
    assert os.listdir(path.parent) == [path.name]
    assert_equal(read(path), alone(7))
    shutil.copytree(path, path.with_name(f".{path.name}.replaced.partial"))
    tidy(path.parent)
    assert os.listdir(path.parent) == [path.name]


def test_link_is_a_copy_where_there_are_no_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    last = path.with_name("last.ckpt")
    write(last, {"global_step": 3, "state_dict": {}, "callbacks": {}})
    for _ in range(2):
        link(last, path)
        assert_equal(read(last), alone(7))
        assert sorted(os.listdir(path.parent)) == ["last.ckpt", "step=7.ckpt"]


def test_file_takes_the_place_of_a_folder(path: Path) -> None:
    write(path, {"global_step": 8, "state_dict": {}, "callbacks": {}})
    assert path.is_file()
    assert read(path)["global_step"] == 8
    assert os.listdir(path.parent) == [path.name]
