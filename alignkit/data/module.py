"""The one LightningDataModule. Shape suffixes: K candidates of a prompt, best first; B prompts; C H W."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

from alignkit.components import PairSource
from alignkit.data.bank.store import Bank, Banked, Places
from alignkit.data.buckets import bucket_sizes, check_step, sort_into
from alignkit.data.cache.store import Cache, CachedPairs, StoredBatch, as_it_is
from alignkit.data.cache.table import source_hash
from alignkit.data.dataset import CENTRED, PairDataset, check_reads, collate
from alignkit.data.framing import Framing
from alignkit.data.loader import ResumableLoader, shared_out
from alignkit.data.ordering import Ordering, Ties
from alignkit.data.pictures import MAX_PIXELS, MOST_PIXELS, framed
from alignkit.data.unreadable import check_share
from alignkit.data.workers import NamingLoader
from alignkit.signals import left_to_parent
from alignkit.types import Batch, Reads


class AlignData(pl.LightningDataModule):
    """Batches of preference pairs, winner first.

    Args:
        train: pairs to train on.
        validation: held-out pairs, by prompt; without them nothing is validated or evaluated. Their ties are
            always dropped.
        batch_size: pairs per device and step.
        resolution: side of the square that pictures are resized (shorter side) and cropped to; with
            bucket_step, of the square whose area the training pictures have.
        ties: what becomes of training pairs without a winner. "drop" leaves them out; "coin" decides each
            once, by the seed; "soft" keeps every label as a probability and trains on the expected loss.
        num_workers: processes that read and decode; 0 does it in the training process.
        seed: seed of the order, and of coins.
        cache: folder that ``alignkit cache`` wrote for these pairs and this model; then neither pictures are
            read nor frozen encoders loaded.
        bank: folder that ``alignkit cache --reference`` wrote for this config; then no reference is run. What
            is drawn for a pair comes again after as many visits as the bank has.
        reads: what batches hold of each training pair; set from objective and sampler.
        validation_reads: the same of validation pairs; set from the objective.
        crop_shift: how far the crop of training pictures leaves the centre, drawn anew at every visit of a
            pair and the same for both sides; a share of the room there is, from 0, the centre, to 1.
        flip: probability that both pictures of a training pair are mirrored, drawn likewise.
        bucket_step: training pictures keep their shape, up to multiples of so many pixels: a pair has that of
            its winner, and a batch those of one shape; the last few of each shape are left out, others in
            every epoch. The squares of resolution without it; validation pictures are squares always.
        max_pixels: pictures of more are not decoded.
        max_unreadable: the most pairs that may be unreadable, as a share of them. Such a pair is named, and
            the next one is read in its place; the run ends where there are more.
        worker_timeout: seconds in which the processes that read must give a batch; then they count as
            hanging, and the run ends.
    """

    def __init__(
        self,
        train: PairSource,
        validation: PairSource | None = None,
        batch_size: int = 8,
        resolution: int = 512,
        ties: Ties = "drop",
        num_workers: int = 0,
        seed: int = 0,
        cache: str | None = None,
        bank: str | None = None,
        reads: Reads = "pair",
        validation_reads: Reads = "pair",
        crop_shift: float = 0.0,
        flip: float = 0.0,
        bucket_step: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_unreadable: float = 0.01,
        worker_timeout: float = 300.0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"AlignData: batch_size must be at least 1, got {batch_size}")
        if resolution < 8:
            raise ValueError(f"AlignData: resolution must be at least 8 pixels, got {resolution}")
        Ordering(reads, ties, seed).checked()
        if not 1 <= max_pixels <= MOST_PIXELS:
            raise ValueError(f"AlignData: max_pixels must be from 1 to {MOST_PIXELS}, got {max_pixels}")
        check_share(max_unreadable)
        if not worker_timeout > 0:
            raise ValueError(f"AlignData: worker_timeout must be positive, got {worker_timeout}")
        if bucket_step is not None:
            check_step(resolution, bucket_step)
        self.framing = Framing(crop_shift, flip, seed).checked()
        if cache is not None and not (self.framing.fixed and bucket_step is None):
            raise ValueError(
                "AlignData: a cache holds one square of each picture: with it, crop_shift and flip must be 0 "
                f"and bucket_step null, got {crop_shift}, {flip} and {bucket_step}; or leave cache out"
            )
        if bank is not None and bucket_step is not None:
            raise ValueError(
                f"AlignData: a bank holds squares: with it, bucket_step must be null, got {bucket_step}; or "
                "leave bank out"
            )
        self.bucket_step, self.max_pixels, self.max_unreadable = bucket_step, max_pixels, max_unreadable
        self.train, self.validation = train, validation
        self.batch_size, self.resolution, self.ties = batch_size, resolution, ties
        self.num_workers, self.seed, self.cache, self.bank = num_workers, seed, cache, bank
        self.worker_timeout = worker_timeout
        self.reads, self.validation_reads = reads, validation_reads
        self._identity: Mapping[str, str | int] = {}

    def setup(self, stage: str) -> None:
        """Decides on the ties of the training pairs.

        Raises:
            ValueError: too few pairs are left for one batch on every device, pairs are asked of winners, or
                the cache is of other pairs.
        """
        if self.validation is not None:
            check_reads("validation", self.validation, self.validation_reads)
        if self.opened_cache is not None:
            self.opened_cache.check_pairs(self.sources(), self.resolution, framed(self.max_pixels))
        if stage != "fit":
            return
        self._train = self.dataset("train")
        done = {"drop": "dropped", "coin": "decided by coin", "soft": "kept as soft labels"}[self.ties]
        rank_zero_info(f"{len(self._train)} training pairs, {self._train.num_ties} ties {done}")
        needed = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        if self.bucket_step is not None and isinstance(self._train, PairDataset):
            sort_into(bucket_sizes(self.resolution, self.bucket_step), self._train, needed)
        if len(self._train) < needed:
            raise ValueError(
                f"AlignData: {len(self._train)} training pairs are fewer than the {needed} of one "
                "step; lower batch_size or give more pairs"
            )

    def train_dataloader(self) -> ResumableLoader:
        buckets = self._train.buckets if isinstance(self._train, PairDataset) else None
        return ResumableLoader(
            self._train,
            self.batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            num_workers=self.num_workers,
            groups=buckets and buckets.place_R,
            accumulated=self.trainer.accumulate_grad_batches if self.trainer else 1,
            collate_fn=self.collating("train"),
            visits=None if self.opened_bank is None else self.opened_bank.visits("train"),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=left_to_parent,
            named=self._train.name,
            worker_timeout=self.worker_timeout,
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if self.validation is None:
            return []
        pairs = self.dataset("validation")
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        if len(pairs) < world_size:
            raise ValueError(
                f"AlignData: {len(pairs)} validation pairs are fewer than the {world_size} processes; give "
                "more, or none"
            )
        batches = [
            [(index, 0) for index in batch]
            for batch in shared_out(len(pairs), self.batch_size, rank=rank, world_size=world_size)
        ]
        return self.in_order("validation", pairs, batches)

    def in_order(
        self, split: str, pairs: PairDataset | CachedPairs, batches: Sequence[Sequence[tuple[int, int]]]
    ) -> DataLoader[Batch]:
        """Loads the pairs and visits that are named, batch by batch.

        Args:
            split: "train" or "validation".
            pairs: its data set.
            batches: what the data set is asked for, ``(index, visit)``.
        """
        return NamingLoader(
            pairs,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=self.collating(split),
            worker_init_fn=left_to_parent,
            named=pairs.name,
            worker_timeout=self.worker_timeout,
        )

    def on_before_batch_transfer(
        self, batch: Batch | StoredBatch, dataloader_idx: int
    ) -> Batch | StoredBatch:
        """Keeps what the host must know of a batch, and lets a GPU fetch the rest while others work."""
        plain = batch.batch if isinstance(batch, StoredBatch) else batch
        kept = plain._replace(host_B2=torch.stack([plain.id_B, plain.visit_B], dim=1).numpy())
        found = batch._replace(batch=kept) if isinstance(batch, StoredBatch) else kept
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return found
        pinned: Batch | StoredBatch = apply_to_collection(found, torch.Tensor, torch.Tensor.pin_memory)
        return pinned

    def on_after_batch_transfer(self, batch: Batch | StoredBatch, dataloader_idx: int) -> Batch:
        return batch.opened() if isinstance(batch, StoredBatch) else batch

    def sources(self) -> dict[str, PairSource]:
        """The pairs by split, training pairs first."""
        splits = {"train": self.train, "validation": self.validation}
        return {split: source for split, source in splits.items() if source is not None}

    @cached_property
    def opened_cache(self) -> Cache | None:
        """The cache; None where pictures are read.

        Raises:
            ValueError: the folder holds no finished one.
        """
        return None if self.cache is None else Cache(Path(self.cache))

    @cached_property
    def opened_bank(self) -> Bank | None:
        """The reference bank; None where a reference is asked.

        Raises:
            ValueError: the folder holds no finished one.
        """
        return None if self.bank is None else Bank(Path(self.bank))

    def training_prompts(self) -> list[str]:
        """The distinct prompts of the training pairs, sorted."""
        prompts = self.train.prompts()
        return sorted({prompts[row] for row in self._train.rows})

    def held_out_prompts(self) -> list[str]:
        """The distinct prompts of the validation pairs, in their order."""
        return [] if self.validation is None else list(dict.fromkeys(self.validation.prompts()))

    def facts(self) -> dict[str, Any]:
        """What a run reports of its training pairs; empty where none were trained on."""
        pairs = getattr(self, "_train", None)
        return (
            {} if pairs is None else {"pairs": len(pairs), "ties": pairs.num_ties, "ties_policy": self.ties}
        )

    def identity(self) -> Mapping[str, str | int]:
        """Which pairs are trained on, by what can be told without their pictures; empty before ``setup``."""
        if not hasattr(self, "_train"):
            return {}
        self._identity = self._identity or {
            "pairs": len(self.train),
            "ids_and_prompts": source_hash(self.train),
            "labels": hashlib.sha256(np.asarray(self.train.labels(), np.float64).tobytes()).hexdigest(),
            "users": hashlib.sha256("\n".join(self.train.users()).encode()).hexdigest(),
            **({} if self.opened_cache is None else {"cache_identity": self.opened_cache.identity}),
        }
        return self._identity

    def ordering(self, split: str) -> Ordering:
        """Which pairs of a split are read, and what of each."""
        if split == "train":
            return Ordering(self.reads, self.ties, self.seed)
        return Ordering(self.validation_reads)

    def dataset(self, split: str) -> PairDataset | CachedPairs:
        """The pairs of a split as they are read."""
        source, ordering = self.sources()[split], self.ordering(split)
        if self.opened_cache is not None:
            check_reads(split, source, ordering.reads)
            return CachedPairs(source, self.opened_cache, split, ordering, max_unreadable=self.max_unreadable)
        return PairDataset(
            source,
            self.resolution,
            *ordering,
            framing=self.framing if split == "train" else CENTRED,
            max_pixels=self.max_pixels,
            max_unreadable=self.max_unreadable,
        )

    def collating(self, split: str) -> Callable[[Any], Any]:
        """What makes batches of what was read of a split."""
        plain: Callable[[Any], Any] = collate if self.opened_cache is None else as_it_is
        if self.opened_bank is None:
            return plain
        return Banked(self.opened_bank, split, Places(self.sources()[split], self.ordering(split)), plain)
