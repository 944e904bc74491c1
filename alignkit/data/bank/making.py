"""Asks the reference about every pair of a run's sources, shared out over processes.

Shape suffixes: K candidates of a prompt, best first; B prompts; R pairs of a source; S the two pictures of a
pair, as its record has them; V visits.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignkit.data import AlignData
from alignkit.data.bank.manifest import FILE, Manifest, differences, read_manifest
from alignkit.data.bank.origin import origin_of
from alignkit.data.bank.store import LOGP, LOST, Places, shards_of
from alignkit.data.cache.making import shown_size
from alignkit.data.cache.store import CachedPairs, StoredBatch, as_it_is
from alignkit.data.dataset import PairDataset
from alignkit.files import write_text
from alignkit.module import AlignModule
from alignkit.signals import left_to_parent
from alignkit.types import Batch


class Wanted(NamedTuple):
    """A bank that is to be made.

    Args:
        folder: where.
        visits: how many visits of each training pair; held-out ones have one.
        file_rows: pairs per file: what a killed run makes again.
        allowed: told the bytes that will be written, says why not to; empty to go on.
    """

    folder: Path
    visits: int
    file_rows: int
    allowed: Callable[[int], str]


class Part(NamedTuple):
    """What the reference is asked at once.

    Args:
        split: "train" or "validation".
        number: of the file.
        places: which pairs of the data set, all at one visit.
        last: whether the file is complete with them.
    """

    split: str
    number: int
    places: tuple[tuple[int, int], ...]
    last: bool


class Parts(Dataset[Batch | StoredBatch]):
    """Reads a part at a time, of several data sets, for a Trainer that takes batch samplers apart.

    Args:
        pairs: what is read, by split.
        collate: makes batches of it.
    """

    def __init__(
        self,
        pairs: Mapping[str, PairDataset | CachedPairs],
        collate: Mapping[str, Callable[[Any], Batch | StoredBatch]],
    ) -> None:
        self._pairs, self._collate = pairs, collate

    def __getitem__(self, part: Part) -> Batch | StoredBatch:
        pairs, collate = self._pairs[part.split], self._collate[part.split]
        if isinstance(pairs, CachedPairs):
            return collate(pairs.__getitems__(part.places))
        return collate([pairs[place] for place in part.places])


class Making(pl.LightningModule):
    """Makes what is missing of a bank: for ``Trainer.predict``.

    Files have a fixed composition, a share of them on each process, as those of a cache.

    Args:
        module: whose reference and sampler.
        data: whose pairs.
        wanted: which bank.
    """

    def __init__(self, module: AlignModule, data: AlignData, wanted: Wanted) -> None:
        super().__init__()
        # there may be less to do than processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.module, self.data, self.wanted = module, data, wanted
        self._held_RSV = torch.empty(0)

    def setup(self, stage: str) -> None:
        self.data.setup("fit")
        if self.data.opened_cache is not None:
            self.module.read_from(self.data.opened_cache)

    def configure_model(self) -> None:
        """Loads the model, finds out what is to be made, and says how large it is.

        Raises:
            ValueError: the folder holds another bank, the disk is too small, or two pairs have the same id.
        """
        self.module.configure_model()
        sources = self.data.sources()
        self._pairs = {split: self.data.dataset(split) for split in sources}
        self._places = {split: Places(source, self.data.ordering(split)) for split, source in sources.items()}
        planned = Manifest(
            origin=origin_of(self.module, self.data),
            pairs={split: len(source) for split, source in sources.items()},
            visits={split: self.wanted.visits if split == "train" else 1 for split in sources},
            file_rows=self.wanted.file_rows,
        )
        told = self._begun(planned) if self.trainer.is_global_zero else ""
        if told := self.trainer.strategy.broadcast(told):
            raise ValueError(told)
        self._shards, self._visits = shards_of(self.wanted.folder, planned), planned.visits

    def predict_dataloader(self) -> DataLoader[Batch | StoredBatch]:
        self._parts = [part for split in self._shards for part in self._parts_of(split)]
        return DataLoader(
            Parts(self._pairs, {split: self.data.collating(split) for split in self._pairs}),
            batch_size=None,
            sampler=self._parts,
            num_workers=self.data.num_workers,
            collate_fn=as_it_is,
            worker_init_fn=left_to_parent,
        )

    def on_after_batch_transfer(self, batch: Batch | StoredBatch, dataloader_idx: int) -> Batch:
        return self.data.on_after_batch_transfer(batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> int:
        """Asks the reference, and writes the file that is complete with it; returns the number of pairs."""
        part = self._parts[batch_idx]
        shards = self._shards[part.split]
        rows = shards.rows()[part.number]
        if not self._held_RSV.numel():
            self._held_RSV = self._nothing(part.split, rows)
        self._hold(self._held_RSV, part, rows, batch)
        if part.last:
            shards.write(part.number, {LOGP: self._held_RSV})
            self._held_RSV = torch.empty(0)
        return len(batch.prompts)

    def teardown(self, stage: str) -> None:
        # who has less to do waits for the others, so that the command ends when the bank is whole
        self.trainer.strategy.barrier("banked")

    def _begun(self, planned: Manifest) -> str:
        """Begins the folder, or sees that it is this bank's; why not, if there is a reason."""
        folder = self.wanted.folder
        try:
            found = read_manifest(folder)
        except ValueError as error:
            return str(error)
        if found is not None and found != planned:
            told = differences(found.origin, planned.origin) or [
                f"{name} is {theirs} there and {ours} here"
                for name, theirs, ours in zip(Manifest._fields, found, planned, strict=True)
                if theirs != ours
            ]
            return (
                f"--out {folder}: there is another reference bank in that folder: {'; '.join(told)}. Give "
                "another folder, or remove that one"
            )
        size, asked = 0, []
        for split, shards in shards_of(folder, planned).items():
            missing, visits = [rows for _, rows in shards.missing()], planned.visits[split]
            size += 2 * visits * torch.float32.itemsize * sum(map(len, missing))
            count = sum(len(self._read_of(split, rows)) for rows in missing)
            asked.append(f"{count} {split} pairs{f' at {visits} visits' if visits > 1 else ''}")
        rank_zero_info(
            f"the reference is asked about {', '.join(asked)}: {shown_size(size)} to be written to {folder}"
        )
        if size and (refusal := self.wanted.allowed(size)):
            return refusal
        write_text(folder / FILE, planned.text())
        return ""

    def _parts_of(self, split: str) -> Iterator[Part]:
        """What this process has to ask of a split; a file of pairs that are not read is written at once."""
        shards, size = self._shards[split], self.data.batch_size
        for number, rows in shards.missing():
            if number % self.trainer.world_size != self.trainer.global_rank:
                continue
            read = self._read_of(split, rows)
            places = [
                tuple((index, visit) for index in read[start : start + size])
                for visit in range(self._visits[split])
                for start in range(0, len(read), size)
            ]
            for count, some in enumerate(places, 1):
                yield Part(split, number, some, count == len(places))
            if not places:
                shards.write(number, {LOGP: self._nothing(split, rows)})

    def _read_of(self, split: str, rows: range) -> range:
        """Which pairs of the data set are of so many rows of the source."""
        return range(*np.searchsorted(self._pairs[split].rows, (rows.start, rows.stop)).tolist())

    def _nothing(self, split: str, rows: range) -> Tensor:
        return torch.full((len(rows), 2, self._visits[split]), torch.nan)

    def _hold(self, held_RSV: Tensor, part: Part, rows: range, batch: Batch) -> None:
        """Keeps what was said; a pair that could not be read has another one in its place, and is marked."""
        ref_logp_KB = self.module.score_reference(batch).ref_logp_KB
        assert ref_logp_KB is not None
        visit = part.places[0][1]
        row_B, side_KB = self._places[part.split].of(batch.id_B)
        within_B = (row_B >= rows.start) & (row_B < rows.stop)
        row_B, side_KB = row_B[within_B] - rows.start, side_KB[:, within_B]
        held_RSV[row_B, side_KB, visit] = ref_logp_KB.float().cpu()[:, within_B]
        asked_B = (
            torch.from_numpy(self._pairs[part.split].rows[[index for index, _ in part.places]]) - rows.start
        )
        lost_B = asked_B[held_RSV[asked_B, :, visit].isnan().all(-1)]
        held_RSV[lost_B, :, visit] = LOST
