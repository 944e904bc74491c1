"""One file of a checkpoint: that damage is noticed, and what a failed save leaves."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from alignkit.checkpoints import UnsavedError, file, read, write

STATE = {
    "global_step": 7,
    "state_dict": {"policy.weight": torch.arange(6.0).view(2, 3), "policy.bias": torch.tensor([True, False])},
    "loops": [{"epoch": 1, "seen": (3, None)}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "saved" / "step=7.ckpt"
    write(path, STATE)
    return path


def stated(content: bytes) -> bytes:
    """The content with the sha256 that it should state."""
    start = content.index(b'"sha256":"') + len(b'"sha256":"')
    blank = content[:start] + b"0" * 64 + content[start + 64 :]
    return content[:start] + hashlib.sha256(blank).hexdigest().encode() + content[start + 64 :]


def test_safetensors_reads_it_and_its_sha256_is_that_of_all_of_it(path: Path) -> None:
    with safe_open(path, "pt") as found:
        assert torch.equal(found.get_tensor("state_dict/policy.weight"), STATE["state_dict"]["policy.weight"])  # type: ignore[index]
        assert set(found.metadata()) == {"sha256", "state"}
    content = path.read_bytes()
    assert content == stated(content)
    assert os.listdir(path.parent) == [path.name]


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    content, draw = path.read_bytes(), random.Random(0)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(
            ValueError, match=r"step=7\.ckpt is (no checkpoint of alignkit|damaged or cut off)"
        ):
            read(path)
    path.write_bytes(content)
    assert read(path)["global_step"] == 7


def test_every_truncation_and_whatever_is_appended_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=r"step=7\.ckpt is (no checkpoint of alignkit|damaged or cut off)"
        ):
            read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="damaged or cut off"):
        read(path)


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["torch.save", "torch.save, old", "pickle"])
def test_pickle_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "last.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Canary(canary)}))
    else:
        torch.save({"state_dict": Canary(canary)}, path, _use_new_zipfile_serialization=kind == "torch.save")
    with pytest.raises(ValueError, match=r"is a pickle, .* could run code and is not read"):
        read(path)
    assert not canary.exists()
    with contextlib.suppress(RuntimeError):  # torch misses its own first word in a bare one
        torch.load(path, weights_only=False)
    assert canary.exists()  # it would have run


def crafted(tree: str) -> bytes:
    """A file with the right sha256, which says nothing of who wrote it."""
    told = {"__metadata__": {"sha256": "0" * 64, "state": tree}}
    header = json.dumps(told, separators=(",", ":")).encode()
    return stated(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    "tree",
    [
        '{"code": "print(1)"}',
        '{"tensor": "nothing"}',
        '{"tensor": ["state_dict/policy.weight"]}',
        '{"dict": 5}',
        '{"dict": [[[], 1]]}',
        '{"dict": [["a", 1]], "tuple": []}',
        "{}",
        "no JSON",
        "5",
        "[" * 5000 + "]" * 5000,
    ],
)
def test_contents_that_no_checkpoint_has_are_refused(path: Path, tree: str) -> None:
    path.write_bytes(crafted(tree))
    with pytest.raises(ValueError, match=r"step=7\.ckpt "):
        read(path)


def test_state_that_cannot_be_held_is_refused_and_leaves_what_was_there(path: Path) -> None:
    with pytest.raises(UnsavedError, match=r"cannot save .*step=7\.ckpt: callbacks/Acme is a builtins\.set"):
        write(path, {"callbacks": {"Acme": {1}}})
    assert read(path)["global_step"] == 7


def assert_intact(path: Path) -> None:
    assert read(path)["global_step"] == 7
    assert os.listdir(path.parent) == [path.name]


LARGE = {"global_step": 8, "weight": torch.zeros(300_000)}


def test_too_little_room_is_said_before_anything_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil_usage(free=1_000_000)
    monkeypatch.setattr(file.shutil, "disk_usage", lambda folder: room)
    monkeypatch.setattr(file, "_stream", None)
    needed = r"step=7\.ckpt, 1,200,\d\d\d bytes: only 1,000,000 bytes are free"
    with pytest.raises(UnsavedError, match=needed):
        write(path, LARGE)
    assert_intact(path)


def shutil_usage(free: int) -> Any:
    return type(file.shutil.disk_usage("/"))(2 * free, free, free)


def test_file_that_may_not_grow_is_no_file(path: Path) -> None:
    """RLIMIT_FSIZE, as a quota: the system refuses in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(
            UnsavedError, match=r"step=7\.ckpt, 1,200,\d\d\d bytes: File too large\nWhat was saved"
        ):
            write(path, LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_intact(path)


def mounted(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint on a disk of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() or not mounted(folder, "size=1m"):
        pytest.skip("only root may mount a disk of one megabyte, and not everywhere")
    try:
        path = folder / "step=7.ckpt"
        write(path, STATE)
        yield path
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("known", [True, False])
def test_disk_that_gets_full_keeps_what_it_had(
    small: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the free room is known, and where it fills up in the middle of a write."""
    if not known:
        room = shutil_usage(free=10**12)
        monkeypatch.setattr(file.shutil, "disk_usage", lambda folder: room)
    why = r"only [\d,]+ bytes are free there" if known else "No space left on device"
    with pytest.raises(UnsavedError, match=rf"step=7\.ckpt, 1,200,\d\d\d bytes: {why}"):
        write(small, LARGE)
    assert_intact(small)


def test_read_only_disk_is_told_in_words(small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small.parent)], check=True)
    with pytest.raises(UnsavedError, match=r"cannot save .*step=8\.ckpt, .* bytes: Read-only file system"):
        write(small.with_name("step=8.ckpt"), STATE)
    assert_intact(small)


def test_refused_permission_is_told_in_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UnsavedError, match=r"cannot save .*step=7\.ckpt, .* bytes: Permission denied"):
        write(path, LARGE)
    monkeypatch.undo()
    assert_intact(path)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_disk_that_writes_something_else_is_noticed(
    path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = file._stream

    def garbled(partial: Path, *rest: Any) -> str:
        digest = stream(partial, *rest)
        content = bytearray(partial.read_bytes())
        content[place] ^= 4
        partial.write_bytes(content)
        return digest

    monkeypatch.setattr(file, "_stream", garbled)
    with pytest.raises(UnsavedError, match=r"what was written is .*; check the disk"):
        write(path, LARGE)
    assert_intact(path)


def test_another_file_system_for_temporary_files_plays_no_part(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own would write to TMPDIR, and then copy over what was there."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    opened: list[str] = []
    original = Path.open

    def noted(self: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(str(self.parent))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", noted)
    write(path, LARGE)
    assert set(opened) == {str(path.parent)}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory was in use at most")
def test_saving_takes_no_memory_for_a_copy(tmp_path: Path) -> None:
    """180 MB in 5 tensors, two of them not contiguous: a copy of one, 36 MB, and 4 MB to read back with."""
    tensors = [torch.ones(3000, 3000) for _ in range(5)]
    state = {"state": [tensor.T if place % 2 else tensor for place, tensor in enumerate(tensors)]}
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        pytest.skip("this system keeps a process from measuring a new peak")
    before = peak()
    write(tmp_path / "large.ckpt", state)
    assert peak() - before < 50_000_000


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_file_systems_that_cannot_tell_their_room_or_sync_folders_are_written_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have 0 bytes in all, and know no fsync of a folder."""
    unknown = type(shutil_usage(0))(0, 0, 0)
    monkeypatch.setattr(file.shutil, "disk_usage", lambda folder: unknown)
    sync = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write(path, LARGE)
    assert read(path)["global_step"] == 8
