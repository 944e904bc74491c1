"""Encodes the pictures and prompts of sources into a cache, shared out over processes.

Shape suffixes: P pairs; N pictures; C H W; M prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from alignkit.components import Backbone
from alignkit.data.cache import manifest, table
from alignkit.data.cache.manifest import Manifest, Origin, differences, read_manifest
from alignkit.data.cache.reading import Decoded, Part, Pictures, faulty, hashes
from alignkit.data.cache.shards import Shards
from alignkit.data.cache.store import EXTRA, FRAME, MOMENTS, PICTURES, PROMPTS, TEXT, as_it_is, shards_of
from alignkit.data.cache.table import DIGEST, Table, as_tensors, tabled
from alignkit.data.module import AlignData
from alignkit.data.unreadable import Unreadable
from alignkit.distributed import gathered_objects
from alignkit.files import write_tensors, write_text
from alignkit.signals import left_to_parent
from alignkit.types import Moments, Text

GIB = 2**30
# of a file: what a killed run has to make again, and what a process holds of it meanwhile
FILE_BYTES, FILE_ROWS = 64 * 2**20, 1024
# a deviation of 0 has no logarithm; this one disappears beside any latent
LEAST_STD = 1e-18
Faults = dict[tuple[str, int], str]


class Wanted(NamedTuple):
    """A cache that is to be made.

    Args:
        folder: where.
        origin: what it follows from.
        batch_size: pictures, or prompts, that are encoded at once.
        file_rows: the most pictures, or prompts, of a file.
        allowed: told the bytes that will be written, says why not to; empty to go on.
    """

    folder: Path
    origin: Origin
    batch_size: int
    file_rows: int
    allowed: Callable[[int], str]


class Making(pl.LightningModule):
    """Makes what is missing of a cache: for ``Trainer.predict``.

    Pictures and prompts are put into files of a fixed composition, a share of the files on each process. So
    whoever resumes, with however many processes, makes the files that are missing as they would have been.

    Args:
        backbone: whose encoders.
        data: whose pictures and prompts.
        wanted: which cache.
    """

    def __init__(self, backbone: Backbone, data: AlignData, wanted: Wanted) -> None:
        super().__init__()
        # there may be less to do than processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.backbone, self.data, self.wanted = backbone, data, wanted
        self.dtype_stored: torch.dtype = getattr(torch, str(wanted.origin.dtype))
        self._unreadable = {
            split: Unreadable(len(source), data.max_unreadable) for split, source in data.sources().items()
        }
        self._faults: Faults = {}
        self._pieces: list[dict[str, Tensor]] = []
        self.manifest: Manifest | None = None

    def setup(self, stage: str) -> None:
        """Finds out what is to be made, and says how large it is.

        Raises:
            ValueError: the folder holds another cache, the disk is too small, or too much cannot be read.
        """
        found = read_manifest(self.wanted.folder)
        if found is not None:
            self._refuse_other(found)
        planned = self._planned(found)
        if isinstance(planned, str):
            raise ValueError(planned)
        self.manifest = planned
        self.trainer.strategy.barrier("planned")
        self._shards = dict(zip((PICTURES, PROMPTS), shards_of(self.wanted.folder, planned), strict=True))
        self.table = Table(self.wanted.folder / table.FILE)

    def predict_dataloader(self) -> DataLoader[Decoded]:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        parts = [part for shards in self._shards.values() for part in self._parts(shards, rank, world_size)]
        reading = Pictures(self.data.sources(), self.table, self.data.resolution, self.data.max_pixels)
        return DataLoader(
            reading,
            batch_size=None,
            sampler=parts,
            num_workers=self.data.num_workers,
            collate_fn=as_it_is,
            worker_init_fn=left_to_parent,
        )

    def predict_step(self, batch: Decoded, batch_idx: int) -> int:
        """Encodes a part, and writes the file that is complete with it; returns how much it encoded."""
        self._note(batch.faults)
        self._pieces.append(self._encoded(batch))
        if batch.part.last:
            pieces, self._pieces = self._pieces, []
            whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
            self._shards[batch.part.kind].write(batch.part.number, whole)
        return len(batch.part.rows)

    def teardown(self, stage: str) -> None:
        # who has less to do waits for the others, so that the command ends when the cache is whole
        self.trainer.strategy.barrier("cached")

    def _refuse_other(self, found: Manifest) -> None:
        if told := differences(found.origin, self.wanted.origin):
            raise ValueError(
                f"--out {self.wanted.folder}: there is another cache in that folder: {'; '.join(told)}. Give "
                "another folder, or remove that one"
            )

    def _planned(self, found: Manifest | None) -> Manifest | str:
        """What the folder shall hold, the same in every process; or why it shall not."""
        digests = self._digests() if found is None else {}
        planned: Manifest | str = ""
        if self.trainer.is_global_zero:
            try:
                planned = self._begun(digests) if found is None else self._resumed(found)
            except ValueError as error:
                planned = str(error)
        agreed: Manifest | str = self.trainer.strategy.broadcast(planned)
        return agreed

    def _digests(self) -> dict[str, NDArray[np.uint8]]:
        """Hashes of all pictures, by split; each process makes a share, and the first gets all."""
        sources = self.data.sources()
        whole = {split: np.zeros((len(source), 2, DIGEST), np.uint8) for split, source in sources.items()}
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        mine = list(hashes(sources, rank, world_size, num_workers=self.data.num_workers))
        for shares in gathered_objects(mine):
            for share in shares:
                self._note(share.faults)
                whole[share.split][share.first : share.first + len(share.digest_P2D)] = share.digest_P2D
        return whole

    def _begun(self, digests: dict[str, NDArray[np.uint8]]) -> Manifest:
        tensors = tabled(self.data.sources(), digests)
        pictures, prompts = len(tensors["pictures.digest"]), len(tensors["prompts.ends"])
        if not pictures:
            raise ValueError("no picture of these pairs can be read")
        sizes = self._row_bytes(tensors)
        picture_rows, prompt_rows = (
            max(1, min(self.wanted.file_rows, FILE_BYTES // size, count))
            for size, count in zip(sizes, (pictures, prompts), strict=True)
        )
        planned = Manifest(self.wanted.origin, pictures, prompts, picture_rows, prompt_rows, *sizes)
        arrays = as_tensors(tensors)
        self._allow(
            planned, pictures * sizes[0] + prompts * sizes[1] + sum(x.nbytes for x in arrays.values())
        )
        write_tensors(self.wanted.folder / table.FILE, arrays, {})
        write_text(self.wanted.folder / manifest.FILE, planned.text())
        return planned

    def _resumed(self, found: Manifest) -> Manifest:
        size = 0
        for shards, row_bytes in zip(
            shards_of(self.wanted.folder, found), (found.picture_bytes, found.prompt_bytes), strict=True
        ):
            size += sum(len(rows) * row_bytes for number, rows in shards.missing())
        self._allow(found, size)
        return found

    def _allow(self, planned: Manifest, size: int) -> None:
        rank_zero_info(
            f"{planned.pictures} different pictures and {planned.prompts} different prompts in "
            f"{planned.origin.dtype}: {shown_size(size)} to be written to {self.wanted.folder}"
        )
        if size and (refusal := self.wanted.allowed(size)):
            raise ValueError(refusal)

    def _row_bytes(self, tensors: dict[str, Any]) -> tuple[int, int]:
        """Bytes of a picture and of a prompt, by encoding one of each."""
        side = self.data.resolution
        blank = torch.zeros(1, 3, side, side, device=self.device)
        with torch.inference_mode():
            picture = self._stored_moments(self.backbone.encode_images(blank), ("a blank picture",))
            text = self._stored_text(self.backbone.encode_prompts([""], self.device), ("",))
        frame_bytes = 4 * torch.int64.itemsize
        return picture.nbytes + frame_bytes, sum(part.nbytes for part in text.values())

    def _parts(self, shards: Shards, rank: int, world_size: int) -> Iterator[Part]:
        """What this process has to encode of one kind."""
        size = self.wanted.batch_size
        for number, rows in shards.missing():
            if number % world_size != rank:
                continue
            for start in range(0, len(rows), size):
                part = tuple(rows[start : start + size])
                yield Part(shards.kind, number, part, start + size >= len(rows))

    def _encoded(self, batch: Decoded) -> dict[str, Tensor]:
        if batch.image_NCHW is None:
            return self._stored_text(self.backbone.encode_prompts(batch.names, self.device), batch.names)
        assert batch.frame_N4 is not None
        moments = self.backbone.encode_images(batch.image_NCHW)
        return {
            MOMENTS: self._stored_moments(moments, batch.names),
            FRAME: batch.frame_N4.cpu(),
        }

    def _stored_moments(self, moments: Moments, names: Sequence[str]) -> Tensor:
        mean_NCHW, std_NCHW = (part.float() for part in moments)
        logvar_NCHW = 2 * std_NCHW.clamp_min(LEAST_STD).log()
        return self._stored(torch.stack([mean_NCHW, logvar_NCHW], 1), names, "latent")

    def _stored_text(self, text: Text, prompts: Sequence[str]) -> dict[str, Tensor]:
        names = [f"the prompt {prompt!r}" for prompt in prompts]
        extras = {EXTRA + name: part for name, part in text.extras.items()}
        return {
            name: self._stored(part, names, "embedding")
            for name, part in {TEXT: text.text_BLD, **extras}.items()
        }

    def _stored(self, value: Tensor, names: Sequence[str], what: str) -> Tensor:
        """As it is written: a tensor on the CPU, all of it finite."""
        if not value.is_floating_point():
            return value.cpu()
        stored = value.to(self.dtype_stored).cpu()
        finite = stored.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            name, raw = next((n, v) for n, v, good in zip(names, value, finite, strict=True) if not good)
            raise ValueError(
                f"{name}: its {what} is not finite in {self.wanted.origin.dtype} (largest number "
                f"{float(raw.abs().max()):g}); give a wider --dtype, such as bfloat16 or float32, or look at "
                "the encoder's weights"
            )
        return stored

    def _note(self, faults: Sequence[tuple[str, int, str]]) -> None:
        for split, row, reason in faults:
            if row not in self._unreadable[split]:
                self._faults[split, row] = reason
                self._unreadable[split].add(row, ValueError(reason), faulty(self._faults, split))


def shown_size(size: int) -> str:
    """Bytes as they may stand in a message."""
    unit, name = next(((u, n) for u, n in ((GIB, "GiB"), (2**20, "MiB")) if size >= u), (1024, "KiB"))
    return f"{size / unit:.1f} {name}"
