"""Training in rounds, each against candidates that its opponent generated."""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from alignkit.averages import Snapshots, trainable
from alignkit.callbacks import EMA, Checkpoints, ProgressBar, evaluating
from alignkit.components import Reference
from alignkit.data import AlignData
from alignkit.files import write_tensors
from alignkit.module import AlignModule
from alignkit.rollout import Provenance, Recipe, Rollouts
from alignkit.sharding import gathered_whole, placed
from alignkit.stopping import paced
from alignkit.types import Batch

FOLDER = "rounds"
OPPONENT = "opponent.safetensors"


class Rounds(pl.Callback):
    """Trains in rounds of equally many steps, each against candidates that its opponent generated.

    The opponent is the reference. When a round begins, the policy becomes its average if the run keeps one,
    the reference becomes the policy, optimizer, learning rate and averages start anew, and the opponent
    generates candidates for every training prompt, a share of them on each process. A checkpoint is saved
    before that. What it needs besides stands in ``RUN/rounds/<number>``: the opponent's weights, and the
    candidates.

    Args:
        owner: the component whose settings these are, for messages.
        rounds: number of rounds; must divide the run's ``max_steps``.
        recipe: how candidates are generated.
        lr_factors: what the learning rate is multiplied by, one per round; none leaves it.
        betas: the objective's beta, one per round; none leaves it.
    """

    def __init__(
        self,
        owner: str,
        rounds: int,
        recipe: Recipe,
        lr_factors: Sequence[float] = (),
        betas: Sequence[float] = (),
    ) -> None:
        super().__init__()
        _check(owner, rounds, recipe, {"lr_factors": lr_factors, "betas": betas})
        self.owner, self.rounds, self.recipe = owner, rounds, recipe
        self.lr_factors, self.betas = tuple(lr_factors), tuple(betas)
        self.round = 0
        self.rollouts: Rollouts | None = None
        self._steps = self._saved_steps = 0
        self._folder = self._saved_folder = Path()
        self._opponent, self._is_restored = "", True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Divides the run into rounds.

        Raises:
            ValueError: it cannot be divided.
        """
        self._folder = Path(trainer.default_root_dir).absolute() / FOLDER
        if stage != "fit":
            return
        if trainer.max_steps < 1 or trainer.max_steps % self.rounds:
            raise ValueError(
                f"{self.owner}: rounds = {self.rounds} must divide trainer.max_steps, got {trainer.max_steps}"
            )
        self._steps = trainer.max_steps // self.rounds
        self._prescribe(_aligning(pl_module))  # before the optimizer is made

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the opponent in its place.

        Raises:
            ValueError: there is none, or it is not the checkpoint's.
        """
        module = _aligning(pl_module)
        self._restore(trainer, module)
        self._opponent = self._reference(module).fingerprint()
        self._save_opponent(trainer, module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._restore(trainer, _aligning(pl_module))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves a run that begins: its first candidates are not there yet.

        Raises:
            ValueError: the checkpoint's run was divided otherwise.
        """
        if self._saved_steps not in (0, self._steps):
            raise ValueError(
                f"{self.owner}: the checkpoint's rounds have {self._saved_steps} steps, but rounds = "
                f"{self.rounds} and trainer.max_steps = {trainer.max_steps} make {self._steps} of each; "
                "change both, so that they stay as long"
            )
        if trainer.ckpt_path is None:
            self._save(trainer, self.round)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Begins a round.

        Raises:
            ValueError: the candidates are another opponent's.
        """
        module = _aligning(pl_module)
        if trainer.global_step == (self.round + 1) * self._steps:
            self._advance(trainer, module)
        if self.rollouts is None:
            self.rollouts = self._generated(trainer, module)
        made_by, opponent = self.rollouts.provenance.generator, self._reference(module).fingerprint()
        if made_by != opponent:
            raise ValueError(
                f"{self.owner}: the candidates in {self.rollouts.folder} are of another opponent: made by "
                f"{made_by[:12]}, but the reference is {opponent[:12]}"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        # here and not when the round begins: by then a batch is taken from the loader, and would be lost
        if trainer.global_step == (self.round + 1) * self._steps < trainer.max_steps:
            self._save(trainer, self.round + 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "steps": self._steps,
            "opponent": self._opponent,
            "folder": str(self._folder),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.round, self._opponent = state_dict["round"], state_dict["opponent"]
        self._saved_steps = state_dict["steps"]
        self._saved_folder, self._is_restored = Path(state_dict["folder"]), False

    def _reference(self, module: AlignModule) -> Reference:
        if module.reference is None:
            name = type(module.objective).__name__
            raise ValueError(f"{self.owner}: the reference is the opponent, but {name} looks at none")
        return module.reference

    def _save(self, trainer: pl.Trainer, number: int) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.save_as(trainer, f"round-{number}")

    def _advance(self, trainer: pl.Trainer, module: AlignModule) -> None:
        """Ends a round, and makes everything but the candidates ready for the next."""
        reference, policy = self._reference(module), module.policy
        assert policy is not None
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for ema in (callback for callback in callbacks if isinstance(callback, EMA)):
            ema.restart(module)
        for snapshots in (callback for callback in callbacks if isinstance(callback, Snapshots)):
            for average in snapshots.averages:
                average.start(trainable(policy))
        reference.renew()
        self.round, self.rollouts, self._opponent = self.round + 1, None, reference.fingerprint()
        self._save_opponent(trainer, module)
        self._prescribe(module)
        trainer.strategy.setup_optimizers(trainer)

    def _prescribe(self, module: AlignModule) -> None:
        """Sets what the round prescribes."""
        if self.lr_factors:
            module.lr_factor = self.lr_factors[self.round]
        if self.betas and "beta" not in vars(module.objective):
            name = type(module.objective).__name__
            raise ValueError(f"{self.owner}: betas need an objective that has a beta, got {name}")
        if self.betas:
            vars(module.objective)["beta"] = self.betas[self.round]

    def _generated(self, trainer: pl.Trainer, module: AlignModule) -> Rollouts:
        """The round's candidates; those that are not there yet are generated."""
        data, recipe = trainer.datamodule, self.recipe  # type: ignore[attr-defined]
        assert isinstance(data, AlignData)
        provenance = Provenance(
            round=self.round,
            generator=self._opponent,
            backbone=type(module.backbone).__name__,
            sampler=module.backbone.solver,
            num_steps=recipe.num_steps,
            guidance=recipe.guidance,
            seed=module.seed,
            precision=str(trainer.precision),
        )
        folder = self._folder / str(self.round)
        rollouts = Rollouts(folder, data.training_prompts(), recipe=recipe, provenance=provenance)
        mine = range(trainer.global_rank, len(rollouts.chunks), trainer.world_size)
        missing = [chunk for chunk in mine if rollouts.fault(chunk)]
        if stale := [chunk for chunk in missing if rollouts.path(chunk).exists()]:
            first = f"{rollouts.path(stale[0])} {rollouts.fault(stale[0])}"
            warnings.warn(f"{first}; it is generated anew, with {len(stale) - 1} others", stacklevel=2)
        title = f"round {self.round + 1} of {self.rounds}"
        count, started = sum(map(len, rollouts.chunks)), time.monotonic()
        rank_zero_info(
            f"{title}: {count} images by {self._opponent[:12]}, {recipe.num_steps} {provenance.sampler} "
            f"steps, guidance {recipe.guidance:g}; {len(missing)} of {len(mine)} files to generate"
        )
        bar = trainer.progress_bar_callback
        shown = bar.track(missing, f"generating, {title}") if isinstance(bar, ProgressBar) else iter(missing)
        with module.whole_reference() as network, evaluating(network):
            generator = module.compiled("generator", network, graphs=False)
            for chunk in paced(trainer, shown, len(missing)):
                rollouts.generate(chunk, module.backbone, generator, trainer.precision_plugin)
        trainer.strategy.barrier("rollouts")
        if missing:
            rank_zero_info(f"{title}: generated in {time.monotonic() - started:.0f} s")
        return rollouts

    def _save_opponent(self, trainer: pl.Trainer, module: AlignModule) -> None:
        """Writes the opponent's trainable weights, where it is not the base and not there already."""
        path = self._folder / str(self.round) / OPPONENT
        kept = not self.round or _generator(path) == self._opponent
        if trainer.strategy.broadcast(kept):  # as the first process says: each is asked for its share
            return
        assert module.policy is not None
        with self._reference(module).network() as network:
            weights = dict(network.named_parameters())
            trained = {name: gathered_whole(weights[name].detach()) for name, _ in trainable(module.policy)}
        if trainer.is_global_zero:
            write_tensors(path, trained, {"generator": self._opponent, "round": str(self.round)})

    def _restore(self, trainer: pl.Trainer, module: AlignModule) -> None:
        """Makes the reference what it was when the checkpoint was saved."""
        if self._is_restored:
            return
        self._is_restored = True
        if self.round >= self.rounds:
            raise ValueError(
                f"{self.owner}: the checkpoint is in round {self.round + 1}, but rounds = {self.rounds}"
            )
        self._prescribe(module)
        if not self.round:
            return
        beside = Path(str(trainer.ckpt_path)).absolute().parents[1] / FOLDER
        places = [folder / str(self.round) for folder in (self._folder, beside, self._saved_folder)]
        path = next((place / OPPONENT for place in places if (place / OPPONENT).is_file()), None)
        if path is None:
            raise ValueError(
                f"{self.owner}: the checkpoint's opponent, {OPPONENT}, is neither in {places[0]} nor in "
                f"{places[1]}; copy the folder {FOLDER!r} of its run there"
            )
        _renew_as(self._reference(module), module.policy, load_file(path))
        if self._reference(module).fingerprint() != self._opponent:
            raise ValueError(
                f"{self.owner}: {path} is not the opponent that the checkpoint was trained against"
            )


def _check(owner: str, rounds: int, recipe: Recipe, per_round: Mapping[str, Sequence[float]]) -> None:
    """Refuses settings out of range in the owner's name."""
    for name, value in {"rounds": rounds, **recipe._asdict()}.items():
        if not value >= 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
    if recipe.chunk_size % recipe.batch_size:
        raise ValueError(
            f"{owner}: chunk_size must be a multiple of batch_size = {recipe.batch_size}, "
            f"got {recipe.chunk_size}"
        )
    for name, values in per_round.items():
        if values and (len(values) != rounds or not min(values) > 0):
            raise ValueError(
                f"{owner}: {name} must be {rounds} positive numbers, one per round, got {list(values)}"
            )


def _aligning(module: pl.LightningModule) -> AlignModule:
    assert isinstance(module, AlignModule)
    return module


@torch.no_grad()
def _renew_as(reference: Reference, policy: nn.Module | None, weights: Mapping[str, Tensor]) -> None:
    """Renews a reference with trained weights that are not the policy's own."""
    assert policy is not None
    own = {name: weight.clone() for name, weight in trainable(policy)}
    for name, weight in trainable(policy):
        weight.copy_(placed(weights[name], weight))
    reference.renew()
    for name, weight in trainable(policy):
        weight.copy_(own[name])


def _generator(path: Path) -> str:
    """Whose weights a file says it holds; empty where it says nothing."""
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("generator", ""))
    except (SafetensorError, OSError):
        return ""
