"""A reference bank that training reads.

Shape suffixes: K candidates of a prompt, best first; B prompts; R pairs of a source; S the two pictures of a
pair, as its record has them; V visits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from alignkit.components import PairSource
from alignkit.data.bank.manifest import FILE, Manifest, read_manifest
from alignkit.data.cache.shards import Shards
from alignkit.data.cache.store import StoredBatch
from alignkit.data.ordering import Ordering
from alignkit.types import Batch

# the tensor of its files: ref_logp of a pair's two pictures at each visit, float32. NaN was never computed;
# infinity is a pair that could not be read
LOGP = "logp"
LOST = torch.inf


class Bank:
    """A folder that ``alignkit cache --reference`` wrote, in memory: 8 bytes for each pair and visit.

    Args:
        folder: where it is.

    Raises:
        ValueError: there is none, or it is not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, found = folder, read_manifest(folder)
        if found is None:
            raise ValueError(
                f"data.bank: {str(folder)!r} holds no reference bank (it has no {FILE}); make it with "
                "alignkit cache --reference --config CONFIG --out FOLDER"
            )
        self.manifest = found
        faults = [
            told
            for split, shards in shards_of(folder, found).items()
            for number in range(len(shards.rows()))
            if (told := fault(shards, number, found.visits[split]))
        ]
        if faults:
            raise ValueError(
                f"data.bank: {str(folder)!r} is not finished: {len(faults)} files are missing or damaged: "
                f"{faults[0]}. Run alignkit cache --reference as before, it makes what is missing"
            )
        self._logp_RSV = {
            split: torch.cat([load_file(shards.path(number))[LOGP] for number in range(len(shards.rows()))])
            for split, shards in shards_of(folder, found).items()
        }

    def visits(self, split: str) -> int:
        """How often each pair is visited before the first visit comes again.

        Raises:
            ValueError: it has nothing of this split.
        """
        if split not in self._logp_RSV:
            raise ValueError(
                f"data.bank: {str(self.folder)!r} holds nothing of data.{split}; make one for this config, "
                f"or leave data.{split} out"
            )
        return self.manifest.visits[split]

    def logp(self, split: str, row_B: Tensor, side_KB: Tensor, visit_B: Tensor) -> Tensor:
        """What the reference said of some candidates, (K, B).

        Args:
            split: "train" or "validation".
            row_B: numbers of the pairs in their source.
            side_KB: image 0 or 1 of their records.
            visit_B: at which visit.
        """
        return self._logp_RSV[split][row_B, side_KB, visit_B]


class Places:
    """Where in a bank the candidates of batches are.

    Args:
        source: the pairs.
        ordering: which of their pictures are read, and in which order.

    Raises:
        ValueError: two pairs have the same id.
    """

    def __init__(self, source: PairSource, ordering: Ordering) -> None:
        self._ids, self._labels = np.asarray(source.ids(), np.int64), np.asarray(source.labels(), np.float64)
        self._ordering, self._by_id = ordering, self._ids.argsort()
        in_order = self._ids[self._by_id]
        if (again := in_order[1:][in_order[1:] == in_order[:-1]]).size:
            raise ValueError(
                f"a reference bank tells pairs by their ids, and {len(again)} are there twice, such as "
                f"{again[0]}; give each pair an id of its own"
            )

    def all(self) -> tuple[Tensor, Tensor]:
        """Rows and sides of all pairs that are read."""
        rows = self._ordering.rows(self._labels)
        return self._at(rows)

    def of(self, id_B: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and sides, ``(row_B, side_KB)``, of pairs by their ids."""
        places = np.searchsorted(self._ids, id_B.cpu().numpy(), sorter=self._by_id)
        return self._at(self._by_id[places])

    def _at(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        chosen = self._ordering.chosen(self._ids[rows], self._labels[rows])
        return torch.from_numpy(rows), torch.from_numpy(chosen.side_KB)


class Banked:
    """Collates batches, and adds what the bank says of them.

    Args:
        bank: what the reference said.
        split: "train" or "validation".
        places: of the split's pairs.
        collate: makes the batches.

    Raises:
        ValueError: the bank has nothing of some of the pairs that are read.
    """

    def __init__(
        self, bank: Bank, split: str, places: Places, collate: Callable[[Any], Batch | StoredBatch]
    ) -> None:
        self._bank, self._split, self._places, self._collate = bank, split, places, collate
        row_B, side_KB = places.all()
        first = torch.zeros_like(row_B)
        absent_B = bank.logp(split, row_B, side_KB, first).isnan().any(0)
        if count := int(absent_B.sum()):
            raise ValueError(
                f"data.bank: {str(bank.folder)!r} has no numbers of {count} of the {len(row_B)} pairs of "
                f"data.{split}: it was made with other data.ties, or for an objective that reads less of "
                "each pair. Make one for this config"
            )

    def __call__(self, examples: Any) -> Batch | StoredBatch:
        found = self._collate(examples)
        batch = found.batch if isinstance(found, StoredBatch) else found
        row_B, side_KB = self._places.of(batch.id_B)
        batch = batch._replace(ref_logp_KB=self._bank.logp(self._split, row_B, side_KB, batch.visit_B))
        return found._replace(batch=batch) if isinstance(found, StoredBatch) else batch


def fault(shards: Shards, number: int, visits: int) -> str:
    """What is wrong with a file; empty if nothing is."""
    if told := shards.fault(number):
        return told
    entry, wanted = shards.entries(number).get(LOGP), (len(shards.rows()[number]), 2, visits)
    if entry is None or entry.shape != wanted or entry.dtype != torch.float32:
        return f"{shards.path(number)} holds no {LOGP!r} of {wanted} numbers"
    return ""


def shards_of(folder: Path, found: Manifest) -> dict[str, Shards]:
    """The files that a manifest speaks of, by split."""
    return {
        split: Shards(folder, split, size=found.file_rows, count=count, identity=found.identity)
        for split, count in found.pairs.items()
    }
