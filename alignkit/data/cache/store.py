"""A cache that training reads.

Shape suffixes: K candidates of a prompt, best first; B prompts; C H W; L tokens; D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from alignkit.components import PairSource
from alignkit.data.cache import manifest, table
from alignkit.data.cache.manifest import Origin, read_manifest, refuse_stale
from alignkit.data.cache.shards import Shards
from alignkit.data.cache.table import ABSENT, Table, source_hash
from alignkit.data.ordering import TIE, Ordering
from alignkit.data.unreadable import Unreadable
from alignkit.types import Batch, Moments, Text

PICTURES, PROMPTS = "pictures", "prompts"
# the tensors of their files: mean and log-variance, and ``Batch.frame_KB4``, zeros of a picture that could
# not be read; what the networks are told, and extras
MOMENTS, FRAME, TEXT, EXTRA = "moments", "frame", "text", "extra."


class Cache:
    """A folder that ``alignkit cache`` wrote.

    Args:
        folder: where it is.

    Raises:
        ValueError: there is none, or it is not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = read_manifest(folder)
        if found is None:
            raise ValueError(
                f"data.cache: {str(folder)!r} holds no cache (it has no {manifest.FILE}); make it with "
                "alignkit cache --config CONFIG"
            )
        self.origin, self.identity = found.origin, found.identity
        if told := manifest.differences(found.origin, found.origin._replace(version=manifest.VERSION)):
            raise ValueError(
                f"data.cache: {str(folder)!r}: {told[0]}; make it anew with alignkit cache in another folder"
            )
        self.pictures, self.prompts = shards_of(folder, found)
        absent = [
            shards.path(number)
            for shards in (self.prompts, self.pictures)
            for number in range(len(shards.rows()))
            if not shards.path(number).is_file()
        ]
        if absent:
            raise ValueError(
                f"data.cache: {str(folder)!r} is not finished: {len(absent)} files are missing, such as "
                f"{absent[0].name}; run alignkit cache with the same config again, it makes what is missing"
            )
        self.table = Table(folder / table.FILE)
        self.texts = CachedTexts(self.prompts, self.table)

    def check_pairs(self, sources: Mapping[str, PairSource], resolution: int, framing: str) -> None:
        """Refuses to stand for other pairs, or for pictures of another size.

        Raises:
            ValueError: it was made of others.
        """
        hashes = {split: source_hash(source) for split, source in sources.items()}
        refuse_stale(self.folder, self.origin, Origin(None, resolution, framing, hashes))

    def check_encoders(self, encoders: Mapping[str, str]) -> None:
        """Refuses to stand for other encoders.

        Raises:
            ValueError: it was made by others.
        """
        refuse_stale(self.folder, self.origin, self.origin._replace(encoders=encoders))


def shards_of(folder: Path, found: manifest.Manifest) -> tuple[Shards, Shards]:
    """The files of pictures and of prompts that a manifest speaks of."""
    kinds = ((PICTURES, found.picture_rows, found.pictures), (PROMPTS, found.prompt_rows, found.prompts))
    pictures, prompts = (
        Shards(folder, kind, size=size, count=count, identity=found.identity) for kind, size, count in kinds
    )
    return pictures, prompts


class CachedTexts(Mapping[str, Text]):
    """Conditions by prompt, read when they are asked for; float32, whatever they are stored as.

    Args:
        shards: their files.
        table: says which row a prompt has.
    """

    def __init__(self, shards: Shards, table: Table) -> None:
        self._shards, self._table = shards, table

    def __getitem__(self, prompt: str) -> Text:
        row = self._table.find(prompt)
        if row is None:
            raise KeyError(prompt)
        names = self._shards.entries(row // self._shards.size)
        parts = {name: _loud(self._shards.read(name, [row])) for name in names}
        extras = {name.removeprefix(EXTRA): part for name, part in parts.items() if name.startswith(EXTRA)}
        return Text(parts[TEXT], extras)

    def __contains__(self, prompt: object) -> bool:
        return isinstance(prompt, str) and self._table.find(prompt) is not None

    def __iter__(self) -> Iterator[str]:
        return self._table.prompts()

    def __len__(self) -> int:
        return self._table.num_prompts


def _loud(stored: Tensor) -> Tensor:
    return stored.float() if stored.is_floating_point() else stored


class StoredBatch(NamedTuple):
    """A batch with its latents as they are stored: what is computed of them is computed on the device.

    Args:
        batch: all else.
        stored_KB2CHW: means and log-variances of scaled latents.
    """

    batch: Batch
    stored_KB2CHW: Tensor

    def opened(self) -> Batch:
        """The batch as the backbone takes it."""
        mean_KBCHW, logvar_KBCHW = self.stored_KB2CHW.float().unbind(2)
        return self.batch._replace(moments_KB=Moments(mean_KBCHW, (logvar_KBCHW / 2).exp()))


class CachedPairs(Dataset[StoredBatch]):
    """The pairs of a source by their cached latents, ordered; a whole batch at a time.

    No record of the source is read: pictures are found by the pair's row, and what a record says besides is
    read once, as columns. What a data set of pictures would read for ``(index, visit)`` is what this reads.

    Args:
        source: where the pairs come from.
        cache: their latents.
        split: "train" or "validation".
        ordering: which pairs are read, and what of each.
        max_unreadable: the most pairs that may have been unreadable, as a share of them.
    """

    def __init__(
        self,
        source: PairSource,
        cache: Cache,
        split: str,
        ordering: Ordering,
        *,
        max_unreadable: float = 0.0,
    ) -> None:
        self.source, self.cache, self.split, self.ordering = source, cache, split, ordering
        self._labels = np.asarray(source.labels(), np.float64)
        self._ids = np.asarray(source.ids(), np.int64)
        people: dict[str, int] = {}
        numbers = (people.setdefault(user, len(people)) for user in source.users())
        self._user_numbers = np.fromiter(numbers, np.int32, len(source))
        self._people = list(people)
        self.rows, self.num_ties = ordering.rows(self._labels), int((self._labels == TIE).sum())
        self.unreadable = Unreadable(len(self.rows), max_unreadable)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> StoredBatch:
        """Reads pairs at their visits, or the next ones that could be read.

        Raises:
            ValueError: too many could not be read.
        """
        index_B, visit_B = np.array(places, np.int64).T
        found = self._found(index_B)
        while (lost_B := found.lost_B).any():
            for index in index_B[lost_B].tolist():
                if index not in self.unreadable:
                    self.unreadable.add(index, ValueError(self._fault(index)), self._fault)
            index_B = np.where(lost_B, (index_B + 1) % len(self), index_B)
            found = self._found(index_B)
        row_B = self.rows[index_B]
        prompt_B = self.cache.table.prompt_numbers(self.split)[row_B]
        batch = Batch(
            image_KBCHW=None,
            prompts=tuple(self.cache.table.prompt(number) for number in prompt_B.tolist()),
            id_B=torch.from_numpy(self._ids[row_B]),
            visit_B=torch.from_numpy(visit_B.copy()),
            users=tuple(self._people[number] for number in self._user_numbers[row_B].tolist()),
            label_B=None if found.label_B is None else torch.from_numpy(found.label_B).float(),
            frame_KB4=found.frame_KB4,
        )
        shape = found.number_KB.shape
        stored_N2CHW = self.cache.pictures.read(MOMENTS, found.number_KB.ravel().tolist())
        return StoredBatch(batch, stored_N2CHW.unflatten(0, shape))

    def name(self, index: int) -> str:
        """What messages call a pair."""
        return f"pair {self._ids[self.rows[index]]}"

    def _found(self, index_B: NDArray[np.int64]) -> "_Found":
        row_B = self.rows[index_B]
        chosen = self.ordering.chosen(self._ids[row_B], self._labels[row_B])
        number_KB = self.cache.table.pictures(self.split)[row_B, chosen.side_KB]
        absent_KB = number_KB == ABSENT
        frame_N4 = self.cache.pictures.read(FRAME, np.where(absent_KB, 0, number_KB).ravel().tolist())
        frame_KB4 = frame_N4.unflatten(0, number_KB.shape)
        lost_B = (absent_KB | (frame_KB4[..., 0] == 0).numpy()).any(0)
        return _Found(number_KB, frame_KB4, chosen.label_B, lost_B)

    def _fault(self, index: int) -> str:
        """Why a pair cannot be read."""
        return f"{self.name(index)}: a picture of it could not be read when {self.cache.folder} was made"


class _Found(NamedTuple):
    """Where the candidates of pairs are.

    Args:
        number_KB: numbers of their pictures.
        frame_KB4: as in ``Batch``; zeros of a picture that could not be read.
        label_B: as in ``Batch``.
        lost_B: whether a picture of the pair could not be read.
    """

    number_KB: NDArray[np.int64]
    frame_KB4: Tensor
    label_B: NDArray[np.float64] | None
    lost_B: NDArray[np.bool_]


def as_it_is(batch: Any) -> Any:
    """Collates what is a batch already."""
    return batch
