"""What a reference bank says of itself, and whether it is the one that a run wants."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from alignkit.data.cache.manifest import identity_of

FILE = "bank.json"
# of the files' layout and of what they mean: to be raised when either changes
VERSION = "1"
HASH = re.compile("[0-9a-f]{16,}")


class Manifest(NamedTuple):
    """What ``bank.json`` says.

    Args:
        origin: everything that the numbers follow from, in words, by what messages call it.
        pairs: number of pairs of each source, by split.
        visits: number of visits of each pair, by split.
        file_rows: pairs per file.
    """

    origin: Mapping[str, str]
    pairs: Mapping[str, int]
    visits: Mapping[str, int]
    file_rows: int

    def text(self) -> str:
        """As it is written."""
        return json.dumps(self._asdict(), indent=2) + "\n"

    @property
    def identity(self) -> str:
        """What its files call it."""
        return identity_of(self.text())


def read_manifest(folder: Path) -> Manifest | None:
    """What a folder's bank says of itself; None where none was begun.

    Raises:
        ValueError: the file cannot be read.
    """
    path = folder / FILE
    try:
        return _checked(Manifest(**json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove the folder and make the bank again"
        ) from error


def _checked(found: Manifest) -> Manifest:
    """Itself.

    Raises:
        ValueError: it says what none says.
    """
    counts = [found.file_rows, *found.pairs.values(), *found.visits.values()]
    if any(type(count) is not int or count < 1 for count in counts):
        raise ValueError("its numbers must be whole and positive")
    if found.pairs.keys() != found.visits.keys():
        raise ValueError("pairs and visits are not of the same splits")
    if not all(isinstance(told, str) for told in found.origin.values()):
        raise ValueError("its origin is not told in words")
    return found


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """In what a bank's origin differs from the one that is wanted, in words."""
    told = []
    for name, ours in wanted.items():
        theirs = found.get(name)
        if theirs is None:
            told.append(f"{name} is not in the bank")
        elif theirs != ours:
            hashed = HASH.fullmatch(ours) and HASH.fullmatch(theirs)
            told.append(f"{name} differs" if hashed else f"{name} is {theirs} in the bank and {ours} here")
    return told
