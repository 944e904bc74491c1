"""Where models and files of weights are: here or on the hub; and what a record says of them."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from alignkit.files import sha256
from alignkit.folders import located_folder

# what a hub id is read at if no revision is given: commits that several public repositories name, which is
# where they were found; README.md
PINNED = {
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "xswu/HPSv2": "697403c78157020a1ae59d23f111aa58ced35b0a",
    "yuvalkirstain/PickScore_v1": "a4e4367c6dfa7288a00c550414478f865b875800",
    "zai-org/ImageReward": "5736be03b2652728fb87788c9797b0570450ab72",
}
SETTINGS = ("*.json", "vocab.txt", "merges.txt")
# what is read beside weights
BESIDE = ("config.json", "preprocessor_config.json", "processor_config.json")
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")


class Place(NamedTuple):
    """A model's folder, or one file, that is on this machine by now.

    Args:
        named: as the user named it.
        root: the folder, or the file.
        commit: what a hub id was read at; None of what is local.
        files: what is read of it, by name.
    """

    named: str
    root: Path
    commit: str | None
    files: Mapping[str, Path]

    def origins(self, part: str) -> dict[str, str]:
        """What a record says of it.

        Args:
            part: what it is to the one who reads it, such as "model".
        """
        told = {part: self.named}
        if self.commit is not None:
            told[f"{part} commit"] = self.commit
        for name, path in sorted(self.files.items()):
            state = path.stat()
            told[f"{part} sha256 {name}"] = _sha256(path, state.st_size, state.st_mtime_ns)
        return told


def model(path: str, *, revision: str | None, owner: str) -> Place:
    """Finds a model's folder, with its weights: safetensors, or pickles of tensors if there are no others.

    Raises:
        ValueError: there is none.
    """
    root, commit = _folder(path, "config.json", "model", (SAFETENSORS, PICKLED), revision, owner)
    for patterns in (SAFETENSORS, PICKLED):
        if weights := _matching(root, patterns):
            return Place(path, root, commit, _matching(root, BESIDE) | weights)
    raise ValueError(
        f"{owner}: {path!r} has no weights: there is neither {' nor '.join((SAFETENSORS[0], PICKLED[0]))} in "
        f"{root}; give a folder that save_pretrained wrote, or a hub id"
    )


def settings(path: str, *, marker: str, revision: str | None, owner: str) -> Place:
    """Finds a folder of settings and vocabularies; no weights are fetched.

    Args:
        path: a folder or hub id.
        marker: a file that it must have.
        revision: of a hub id.
        owner: class that reads it, for messages.

    Raises:
        ValueError: there is none.
    """
    root, commit = _folder(path, marker, "processor or tokenizer", ((marker,),), revision, owner)
    return Place(path, root, commit, _matching(root, SETTINGS))


def single_file(path: str, *, revision: str | None, owner: str) -> Place:
    """Finds one file: local, or "owner/name/file" of a hub id.

    Raises:
        ValueError: there is none.
    """
    if Path(path).is_file():
        _check_local(path, revision, owner)
        return Place(path, Path(path), None, {Path(path).name: Path(path)})
    match = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)/([\w.+/-]+)", path)
    if match is None:
        raise ValueError(f"{owner}: there is no file {path!r}; give a file, or 'owner/name/file' of a hub id")
    root, commit = _snapshot(
        path, match[1], ((match[2],),), revision, owner, named=f"no file here, and {match[1]}"
    )
    file = root / match[2]
    if not file.is_file():
        raise ValueError(f"{owner}: there is no file {path!r}, neither here nor on the hub; give another")
    return Place(path, file, commit, {match[2]: file})


def _folder(
    path: str,
    marker: str,
    kind: str,
    wanted: Sequence[Sequence[str]],
    revision: str | None,
    owner: str,
) -> tuple[Path, str | None]:
    root = located_folder(path, marker=marker, kind=kind, owner=owner)
    if Path(root).exists():
        _check_local(path, revision, owner)
        return Path(root), None
    return _snapshot(path, root, wanted, revision, owner, named=repr(root))


def _check_local(path: str, revision: str | None, owner: str) -> None:
    if revision is not None:
        raise ValueError(
            f"{owner}: revision {revision!r} is for a hub id, but {path!r} is here; leave it out"
        )


def _snapshot(
    path: str, hub_id: str, wanted: Sequence[Sequence[str]], revision: str | None, owner: str, *, named: str
) -> tuple[Path, str]:
    """The hub's cache, which is asked first: a machine that has it needs no network.

    ``wanted`` are kinds of files in order of preference: of the first that exists all are fetched.
    """
    fetched = partial(snapshot_download, hub_id, revision=revision or PINNED.get(hub_id))
    try:
        try:
            root = Path(fetched(local_files_only=True))
            if any(_matching(root, patterns) for patterns in wanted):
                return root, root.name
        except OSError:  # nothing of it is there
            pass
        for patterns in wanted:
            root = Path(fetched(allow_patterns=[*SETTINGS, *patterns]))
            if _matching(root, patterns):
                break
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{owner}: cannot get {path!r}: {named} is not on this machine, and the hub does not give it:\n"
            f"{reason}\nGive what is here, or a hub id that this machine can reach; `hf download` gets one "
            "beforehand"
        ) from error
    return root, root.name


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file, once as long as it does not change: gigabytes take seconds."""
    return sha256(path)


def _matching(root: Path, patterns: Sequence[str]) -> dict[str, Path]:
    return {path.name: path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_file()}
