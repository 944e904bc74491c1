"""What is cached: the different pictures and prompts of sources, and which pair has which.

Shape suffixes: P pairs; N different pictures; M different prompts.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alignkit.components import PairSource
from alignkit.data.cache.shards import mapped

FILE = "table.safetensors"
DIGEST = 16
ABSENT = -1
NO_PICTURE = bytes(DIGEST)


class Place(NamedTuple):
    """Where a picture was first met: the split, the pair's row in it, and image 0 or 1."""

    split: str
    row: int
    side: int


def digest_of(image: bytes | None) -> bytes:
    """What tells a picture from others: a hash of its bytes; zeros where there are none."""
    return hashlib.blake2b(image, digest_size=DIGEST).digest() if image else NO_PICTURE


def source_hash(source: PairSource) -> str:
    """A hash of a source's ids and prompts, in order; no picture is read."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.asarray(source.ids(), np.int64).tobytes())
    for prompt in source.prompts():
        text = prompt.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()


def _prompt_number(prompt: str) -> int:
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def tabled(sources: Mapping[str, PairSource], digests: Mapping[str, NDArray[np.uint8]]) -> dict[str, Any]:
    """The tensors of a table, as numpy arrays.

    Args:
        sources: the pairs, by split.
        digests: of both pictures of every pair, (P, 2, 16), by split.
    """
    tensors: dict[str, Any] = {}
    whole = np.concatenate([digests[split].reshape(-1, DIGEST) for split in sources])
    # numpy compares such a row as bytes padded with zeros, which all of them are
    unique, first, number = np.unique(
        np.ascontiguousarray(whole).view(f"S{DIGEST}")[:, 0], return_index=True, return_inverse=True
    )
    order = np.argsort(first)  # as they are met, so that they are read one after the other
    if unique[0] == b"":  # no picture at all
        order = order[order != 0]
    rank = np.full(len(unique), ABSENT, np.int64)
    rank[order] = np.arange(len(order))
    where = first[order]
    tensors["pictures.digest"] = whole[where]
    tensors["pictures.place"] = where.astype(np.int64)
    prompts = {"": 0}
    start = 0
    for split, source in sources.items():
        count = len(source)
        tensors[f"{split}.pictures"] = rank[number[start : start + 2 * count]].reshape(count, 2)
        tensors[f"{split}.prompts"] = np.fromiter(
            (prompts.setdefault(prompt, len(prompts)) for prompt in source.prompts()), np.int64, count
        )
        start += 2 * count
    texts = [prompt.encode("utf-8", "surrogatepass") for prompt in prompts]
    tensors["prompts.text"] = np.frombuffer(b"".join(texts) or b"\0", np.uint8)
    tensors["prompts.ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
    hashes = np.fromiter(map(_prompt_number, prompts), np.int64, len(prompts))
    tensors["prompts.order"] = np.argsort(hashes, kind="stable")
    tensors["prompts.hash"] = hashes[tensors["prompts.order"]]
    return tensors


class Table:
    """A table on disk, of which what is looked at is read.

    Args:
        path: its file.

    Raises:
        ValueError: it is no table, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        found = mapped(self.path)
        _check_shapes(self.path, found)
        self.num_pictures, self.num_prompts = len(found["pictures.digest"]), len(found["prompts.ends"])
        self._found = found
        self.splits = _splits(found)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()

    def pictures(self, split: str) -> NDArray[np.int64]:
        """Numbers of both pictures of every pair, (P, 2); -1 where a pair has none."""
        return self._found[f"{split}.pictures"]

    def prompt_numbers(self, split: str) -> NDArray[np.int64]:
        """The number of every pair's prompt, (P,)."""
        return self._found[f"{split}.prompts"]

    def digest(self, picture: int) -> bytes:
        """The hash of a picture."""
        return bytes(self._found["pictures.digest"][picture])

    def place(self, picture: int) -> Place:
        """Where a picture is met first."""
        place = int(self._found["pictures.place"][picture])
        # tables are written with the training pairs first
        for split in ("train", "validation"):
            count = 2 * len(self.pictures(split))
            if place < count:
                break
            place -= count
        return Place(split, *divmod(place, 2))

    def prompt(self, number: int) -> str:
        """The prompt of a number; the empty one is 0."""
        ends = self._found["prompts.ends"]
        begin = int(ends[number - 1]) if number else 0
        text: bytes = self._found["prompts.text"][begin : int(ends[number])].tobytes()
        return text.decode("utf-8", "surrogatepass")

    def prompts(self) -> Iterator[str]:
        """All prompts, in the order of their numbers."""
        return (self.prompt(number) for number in range(self.num_prompts))

    def find(self, prompt: str) -> int | None:
        """The number of a prompt; None where it is not among them."""
        hashes, wanted = self._found["prompts.hash"], _prompt_number(prompt)
        place = int(np.searchsorted(hashes, np.int64(wanted)))
        while place < len(hashes) and hashes[place] == wanted:
            number = int(self._found["prompts.order"][place])
            if not 0 <= number < self.num_prompts:
                raise ValueError(f"{self.path} is damaged: it has no prompt {number}")
            if self.prompt(number) == prompt:
                return number
            place += 1
        return None


def _check_shapes(path: Path, found: Mapping[str, NDArray[Any]]) -> None:
    """Checks that all parts of a table are there, and as long as each other.

    Raises:
        ValueError: they are not.
    """
    count = {name: len(array) if array.ndim else -1 for name, array in found.items()}
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{split}.prompts": (f"{split}.pictures", (2,)) for split in _splits(found)
    }
    wanted |= {"pictures.place": ("pictures.digest", (DIGEST,))}
    wanted |= {f"prompts.{name}": ("prompts.ends", ()) for name in ("ends", "order", "hash")}
    wrong = [
        name
        for name, (other, rest) in wanted.items()
        if not {name, other} <= found.keys() or count[name] != count[other] or found[other].shape[1:] != rest
    ]
    if wrong or any(found[name].ndim != 1 for name in (*wanted, "prompts.text") if name in found):
        raise ValueError(
            f"{path} is damaged: {', '.join(wrong) or 'its parts'} have not the shape of a table's"
        )
    if "prompts.text" not in found or not count["prompts.ends"]:
        raise ValueError(f"{path} is damaged: it has no prompts")


def _splits(found: Mapping[str, Any]) -> list[str]:
    return [name.partition(".")[0] for name in sorted(found) if name.endswith(".pictures")]


def as_tensors(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Arrays as they are written."""
    return {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
