"""A checkpoint of a sharded run: a folder that every process writes its share to, through torch's DCP.

``shard-00001-of-00002.safetensors`` ...: the tensors, or their slices, of one process. Where a slice begins
stands in a shard's metadata as torch's ``HuggingFaceStorageReader`` reads it.
``state.json``: all else, as ``taken_apart`` gives it.
``manifest.json``: size and sha256 of those files, and the sha256 of itself. It is written last.

The folder is written under another name beside its own, and gets its own once every process has read back
what it wrote. Nothing of it is ever run.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor import empty as empty_dtensor
from torch.futures import Future

from alignkit.checkpoints.file import UNREADABLE, UnsavedError, check_room
from alignkit.checkpoints.stream import METADATA, header, stream, widest_first
from alignkit.checkpoints.values import put_together, taken_apart
from alignkit.distributed import gathered_objects
from alignkit.files import PARTIAL, sha256, sync, sync_names

MANIFEST, STATE = "manifest.json", "state.json"
SHARDING = "DCP_SHARDING_INFO"
REPLACED, REMOVED = f".replaced{PARTIAL}", f".removed{PARTIAL}"


class _Written(NamedTuple):
    """A file of the folder."""

    name: str
    size: int
    sha256: str


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Saves a checkpoint, to be called by every process with its shares; all else is the first one's.

    Raises:
        UnsavedError: it cannot be, in every process; what had the name stays as it was.
    """
    try:
        tree, tensors = taken_apart(checkpoint, METADATA)
    except ValueError as error:
        raise UnsavedError(f"cannot save {path}: {error}") from error
    writer = _Writer(path, tree)
    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
    )
    try:
        with _without_advice():
            dcp.save(tensors, storage_writer=writer, planner=planner)
    except CheckpointException as error:
        writer.undo()
        for rank, (reason, _) in sorted(error.failures.items()):
            if isinstance(reason, OSError):
                raise UnsavedError(
                    f"cannot save {path}, {writer.needed:,} bytes here: process {rank}: "
                    f"{reason.strerror or reason}\nWhat was saved before is as it was"
                ) from error
        raise RuntimeError(f"cannot save {path}: {error}") from error


def read(path: Path, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """Reads and verifies a checkpoint, whatever number of processes saved it.

    Args:
        path: the folder.
        mesh: processes, all of which ask: each gets its share of what was saved in shares, and verifies a
            share of the files. Without it, all is read, and nobody else is asked.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        _verify(path, mesh)
        tree = json.loads((path / STATE).read_bytes())
        reader = HuggingFaceStorageReader(str(path))
        stored = reader.read_metadata().state_dict_metadata
        tensors = {name: _room(told, mesh) for name, told in stored.items()}
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with _without_advice():
            dcp.load(tensors, storage_reader=reader, planner=planner, no_dist=True)
        state = put_together(tree, tensors.__getitem__)
        if not isinstance(state, dict):
            raise ValueError("is no checkpoint of alignkit: it holds no names")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    except (CheckpointException, *UNREADABLE) as error:
        raise ValueError(f"{path} is no checkpoint of alignkit: {error}") from error
    return state


def told(path: Path, name: str) -> Any:
    """What a folder says under a name, unverified and without tensors; None if it says nothing."""
    try:
        tree = json.loads((path / STATE).read_bytes())
        return put_together(dict(tree["dict"])[name], lambda name: None)
    except (OSError, ValueError, *UNREADABLE):
        return None


def remove(path: Path) -> None:
    """Removes a folder; it has no name of a checkpoint while it goes."""
    going = path.with_name(f".{path.name}{REMOVED}")
    _delete(going)
    os.rename(path, going)
    _delete(going)


@contextlib.contextmanager
def put_aside(path: Path) -> Iterator[None]:
    """Takes a name from what has it, for a ``with`` block that may give it anew; then removes what had it."""
    if not path.exists():
        yield
        return
    aside = path.with_name(f".{path.name}{REPLACED}")
    os.rename(path, aside)
    try:
        yield
    except BaseException:
        os.rename(aside, path)
        raise
    _delete(aside)


def tidy(folder: Path, suffix: str) -> None:
    """Removes what a killed process left half-written, and puts back what it was about to replace."""
    for path in folder.glob(f".*{suffix}{REPLACED}"):
        name = folder / path.name[1 : -len(REPLACED)]
        if name.exists():
            _delete(path)
        else:
            os.rename(path, name)
    for path in folder.glob(f".*{suffix}*{PARTIAL}"):
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Writer(StorageWriter):
    """Writes a folder: one file per process, and the coordinator's two. DCP tells all of a failure of one."""

    def __init__(self, path: Path, tree: Any) -> None:
        self.path, self.needed = path, 0
        self._tree, self._partial = tree, path.with_name(f".{path.name}{PARTIAL}")
        self._coordinates = False

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A writer is for one folder."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        self._coordinates = is_coordinator
        if is_coordinator:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        # what is not sharded is in every process, and the first one's is saved
        mine = [
            item
            for item in plan.items
            if _holds_something(item) and (self._coordinates or item.type is WriteItemType.SHARD)
        ]
        self.needed = sum(map(_size, mine))
        return replace(plan, items=mine)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        check_room(self._partial.parent, sum(_size(item) for plan in plans for item in plan.items))
        names = [f"shard-{number:05}-of-{len(plans):05}.safetensors" for number in range(1, len(plans) + 1)]
        return [replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors = {item.index.fqn: cast(Tensor, planner.resolve_data(item)) for item in plan.items}
        begins = {item.index.fqn: {"saved_offsets": list(item.index.offset or ())} for item in plan.items}
        ordered = widest_first(tensors)
        path = self._partial / str(plan.storage_data)
        digest = stream(path, header({SHARDING: json.dumps(begins)}, ordered), ordered)
        if sha256(path) != digest:
            raise OSError("what was written reads otherwise; check the disk")
        written = _Written(path.name, path.stat().st_size, digest)
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(item.index, _size(item), written) for item in plan.items])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        state = json.dumps(self._tree).encode()
        files = {result.storage_data for part in results for result in part}
        files.add(_Written(STATE, len(state), _put(self._partial / STATE, state)))
        _put(self._partial / MANIFEST, _manifest(files))
        sync_names(self._partial)
        with put_aside(self.path):
            os.rename(self._partial, self.path)
        sync_names(self.path.parent)

    def undo(self) -> None:
        """Removes what was written; the old one is where it was."""
        if self._coordinates:
            shutil.rmtree(self._partial, ignore_errors=True)


def _put(path: Path, content: bytes) -> str:
    """Writes a small file to its disk and reads it back; returns its digest."""
    path.write_bytes(content)
    sync(path)
    digest = hashlib.sha256(content).hexdigest()
    if sha256(path) != digest:
        raise OSError("what was written reads otherwise; check the disk")
    return digest


def _manifest(files: set[_Written]) -> bytes:
    held = {name: {"bytes": size, "sha256": digest} for name, size, digest in sorted(files)}
    own = hashlib.sha256(json.dumps(held).encode()).hexdigest()
    return json.dumps({"sha256": own, "files": held}, indent=1).encode()


def _verify(path: Path, mesh: DeviceMesh | None) -> None:
    """Holds the folder against its manifest; with processes, each a share of it.

    Raises:
        ValueError: it is none that was written here, or not as it was written; in every process.
    """
    files = _listed(path)
    if mesh is None:
        faults = [_fault(path, file) for file in files]
    else:
        mine = files[mesh.get_local_rank() :: mesh.size()]
        parts = gathered_objects([_fault(path, file) for file in mine])
        faults = [fault for part in parts for fault in part]
    if told := [fault for fault in faults if fault]:
        raise ValueError(f"is damaged or cut off: {told[0]}")


def _listed(path: Path) -> list[_Written]:
    """What the manifest lists, which must be all that there is.

    Raises:
        ValueError: it is damaged, or other files are there.
    """
    if not (path / MANIFEST).is_file():
        raise ValueError(f"is no checkpoint of alignkit, or not a whole one: there is no {MANIFEST} in it")
    content = (path / MANIFEST).read_bytes()
    try:
        listed = json.loads(content)["files"]
        files = {_Written(name, told["bytes"], told["sha256"]) for name, told in listed.items()}
        intact = content == _manifest(files)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(f"is damaged: {MANIFEST} has not the sha256 that it states")
    names = {file.name for file in files}
    there = {each.name for each in path.iterdir()} - {MANIFEST}
    if odd := sorted(names ^ there):
        what = "is missing" if odd[0] in names else f"is not in its {MANIFEST}"
        raise ValueError(f"is damaged: {odd[0]} {what}")
    return sorted(files)


def _fault(path: Path, file: _Written) -> str:
    """What is wrong with a file; empty where nothing is."""
    try:
        size = (path / file.name).stat().st_size
        if size != file.size:
            return f"{file.name} has {size:,} bytes in place of {file.size:,}"
        return "" if sha256(path / file.name) == file.sha256 else f"{file.name} has another sha256"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror or error}"


def _room(stored: TensorStorageMetadata | BytesStorageMetadata, mesh: DeviceMesh | None) -> Tensor:
    """A tensor to be read into."""
    assert isinstance(stored, TensorStorageMetadata)  # safetensors holds nothing else
    dtype = stored.properties.dtype
    if mesh is None or len(stored.chunks) == 1:
        return torch.empty(stored.size, dtype=dtype)
    return empty_dtensor(*stored.size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])


def _holds_something(item: WriteItem) -> bool:
    """Not so the share of a process where there are fewer rows than processes."""
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes.numel() > 0 or item.tensor_data.size.numel() == 0


def _size(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Says nothing of that a single process saves or loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninit.*")
        yield
