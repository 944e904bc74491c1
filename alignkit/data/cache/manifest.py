"""What a cache depends on, and whether it is the one that a run wants."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = "cache.json"
# of the files' layout and of what they mean: to be raised when either changes
VERSION = 1


class Origin(NamedTuple):
    """Everything that cached latents and texts follow from.

    Args:
        encoders: as ``Backbone.encoder_hashes`` gives them.
        resolution: side of the pictures, pixels.
        framing: how pictures become squares of that side.
        sources: ``source_hash`` of the pairs, by split.
        dtype: of what is stored; None where it does not matter.
        version: of the files.
    """

    encoders: Mapping[str, str] | None
    resolution: int
    framing: str
    sources: Mapping[str, str]
    dtype: str | None = None
    version: int = VERSION


class Manifest(NamedTuple):
    """What ``cache.json`` says.

    Args:
        origin: what the cache depends on.
        pictures: number of different pictures.
        prompts: number of different prompts, the empty one among them.
        picture_rows: pictures per file.
        prompt_rows: prompts per file.
        picture_bytes: size of one picture.
        prompt_bytes: size of one prompt.
    """

    origin: Origin
    pictures: int
    prompts: int
    picture_rows: int
    prompt_rows: int
    picture_bytes: int
    prompt_bytes: int

    def text(self) -> str:
        """As it is written."""
        return json.dumps({**self._asdict(), "origin": self.origin._asdict()}, indent=2) + "\n"

    @property
    def identity(self) -> str:
        """What its files call it."""
        return identity_of(self.text())


def identity_of(text: str) -> str:
    """What the files beside a manifest call it."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """What a folder's cache says of itself; None where no cache was begun.

    Raises:
        ValueError: the file cannot be read.
    """
    path = folder / FILE
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**{**said, "origin": Origin(**said["origin"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove the folder and run alignkit cache again"
        ) from error


def differences(found: Origin, wanted: Origin) -> list[str]:
    """In which of the things that both speak of they differ, in words."""
    told = []
    for name in ("version", "dtype", "resolution", "framing"):
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if ours is not None and ours != theirs:
            told.append(f"{name} is {theirs} in the cache and {ours} here")
    for name, what in (("encoders", "the model's {}"), ("sources", "data.{}")):
        ours, theirs = getattr(wanted, name), getattr(found, name)
        for part in sorted({*ours, *theirs}) if ours is not None else ():
            if part not in theirs:
                told.append(f"{what.format(part)} is not in the cache")
            elif part in ours and ours[part] != theirs[part]:
                told.append(f"{what.format(part)} has changed")
            elif part not in ours and name == "encoders":
                told.append(f"{what.format(part)} is in the cache and not here")
    return told


def refuse_stale(folder: Path, found: Origin, wanted: Origin) -> None:
    """Refuses a cache that was made from something else.

    Raises:
        ValueError: they differ; says in what.
    """
    if told := differences(found, wanted):
        raise ValueError(
            f"data.cache: {str(folder)!r} was made from something else: {'; '.join(told)}. Make one for this "
            "config, alignkit cache --config CONFIG --out ANOTHER_FOLDER, or train with what it was made from"
        )
