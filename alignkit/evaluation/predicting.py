"""Drawing and judging over all processes, by Lightning's ``Trainer.predict``.

Suffixes: N images; C H W; U people; L tokens; D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alignkit.callbacks import ProgressBar
from alignkit.data.cache.store import as_it_is
from alignkit.evaluation.drawing import check_numbers, drawn, picture_seed, read_picture
from alignkit.evaluation.judging import judged
from alignkit.evaluation.models import Model
from alignkit.evaluation.scorers import Scorer
from alignkit.evaluation.sheet import to_pictures
from alignkit.evaluation.store import Picture, Store
from alignkit.stopping import Stopping
from alignkit.watch import watched


class Job(NamedTuple):
    """Pictures of one model.

    Args:
        model: number of the model.
        pictures: which.
        is_drawn: whether they are kept already, and only judged.
        scorers: who judges, by key.
    """

    model: int
    pictures: tuple[Picture, ...]
    is_drawn: bool
    scorers: tuple[str, ...]


class Sampling(NamedTuple):
    """How all models draw.

    Args:
        num_steps: steps of each backbone's sampling method.
        guidance: weight of classifier-free guidance; 1 switches it off.
        precision: as for ``drawn``.
    """

    num_steps: int
    guidance: float
    precision: str


def jobs_of(
    store: Store, wanted: Sequence[Sequence[Picture]], scorers: Sequence[str], batch_size: int
) -> list[Job]:
    """What is not done yet.

    Batches are made of all that is wanted, and then what is done is left out: so a batch that was lost is
    drawn as it would have been, bit by bit.
    """
    jobs = []
    for model, pictures in enumerate(wanted):
        for first in range(0, len(pictures), batch_size):
            batch = pictures[first : first + batch_size]
            if missing := tuple(picture for picture in batch if not store.has(picture)):
                jobs.append(Job(model, missing, False, tuple(scorers)))
            lacking = {one: store.lacking(one, scorers) for one in batch if store.has(one)}
            if unjudged := tuple(one for one, names in lacking.items() if names):
                asked = {name for names in lacking.values() for name in names}
                jobs.append(Job(model, unjudged, True, tuple(name for name in scorers if name in asked)))
    return jobs


class Predicting(pl.LightningModule):
    """Draws, judges and keeps the pictures of jobs. One model is on the device at a time.

    Args:
        jobs: what is to be done, the same in every process.
        models: who draws.
        sampling: how.
        scorers: who judges, by key.
        store: where it is kept.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        models: Sequence[Model],
        sampling: Sampling,
        scorers: Mapping[str, Scorer],
        store: Store,
    ) -> None:
        super().__init__()
        # there may be less to do than processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._jobs, self._models, self._sampling = jobs, models, sampling
        self._scorers, self._store = scorers, store
        self._loaded: tuple[int, nn.Module] | None = None

    def predict_dataloader(self) -> DataLoader[Job]:
        """This process's share, in the order of the models."""
        mine = self._jobs[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(list(mine), batch_size=None, collate_fn=as_it_is)  # type: ignore[arg-type]

    def predict_step(self, job: Job, batch_idx: int) -> int:
        """Does a job; returns its number of pictures.

        Raises:
            ValueError: what was drawn is no picture, or a judge gives no number.
        """
        if job.is_drawn:
            folder = self._store.folder
            image_NCHW = torch.stack([read_picture(folder / picture.path) for picture in job.pictures])
        else:
            image_NCHW = self._drawn(job)
            name, sampling = self._models[job.model].about.name, self._sampling
            check_numbers(
                image_NCHW,
                owner=f"--model {name}",
                guidance=sampling.guidance,
                precision=sampling.precision,
            )
            told = {key: str(value) for key, value in sampling._asdict().items()}
            told["model"] = name
            self._store.save_pictures(job.pictures, to_pictures(image_NCHW), told)
        prompts = [picture.prompt for picture in job.pictures]
        image_NCHW = image_NCHW.to(self.device)
        values = {key: judged(self._scorers[key].judge, image_NCHW, prompts).numpy() for key in job.scorers}
        self._store.write(job.pictures, values)
        return len(job.pictures)

    def on_predict_start(self) -> None:
        for scorer in self._scorers.values():
            scorer.judge.to(self.device)

    def on_predict_end(self) -> None:
        # the report reads what all of them wrote
        self.trainer.strategy.barrier()

    def _drawn(self, job: Job) -> Tensor:
        model, sampling = self._models[job.model], self._sampling
        told_NLD = None
        if model.tokens_ULD is not None:
            people = [picture.place % len(model.tokens_ULD) for picture in job.pictures]
            told_NLD = model.tokens_ULD[people].to(self.device)
        return drawn(
            model.backbone,
            self._network(job.model),
            [picture.prompt for picture in job.pictures],
            seeds=[picture_seed(picture.prompt, picture.number) for picture in job.pictures],
            num_steps=sampling.num_steps,
            guidance=sampling.guidance,
            tokens_NLD=told_NLD,
            precision=sampling.precision,
        )

    def _network(self, number: int) -> nn.Module:
        backbone = self._models[number].backbone
        if self._loaded is None or self._loaded[0] != number:
            if self._loaded is not None and (last := self._models[self._loaded[0]].backbone) is not backbone:
                last.release()
            self._loaded = None  # before the next one takes memory
            self._loaded = number, self._models[number].load().eval().requires_grad_(False).to(self.device)
        return self._loaded[1]


def predict(module: Predicting, *, device: str, devices: int, num_nodes: int) -> None:
    """Runs it over all processes."""
    where = torch.device(device)
    one = devices if where.index is None or where.type == "cpu" else [where.index]
    options: dict[str, Any] = {"strategy": "ddp"} if devices * num_nodes > 1 else {}
    trainer = pl.Trainer(
        accelerator="gpu" if where.type == "cuda" else where.type,
        devices=one,
        num_nodes=num_nodes,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[ProgressBar()],
        **options,
    )
    Stopping().attach(trainer)
    with watched(trainer):
        trainer.predict(module, return_predictions=False)
