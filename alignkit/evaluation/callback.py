"""Held-out evaluation at the end of a run, and what a run leaves in its folder."""

import json
import resource
import sys
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from alignkit.components import Features, Reward
from alignkit.data import AlignData
from alignkit.evaluation.compare import DRAWN, audiences, compare, draw, score, table
from alignkit.evaluation.kept import kept, key
from alignkit.evaluation.sheet import contact_sheet, to_pictures
from alignkit.evaluation.suites import evenly
from alignkit.files import whole, write_text
from alignkit.module import AlignModule
from alignkit.signals import cut_short, is_told

SUMMARY = "summary.json"
SHEET = "before_after.png"
SHEET_SEEDS = 2
ALIGNED = "aligned"


class Evaluation(pl.Callback):
    """Generates for held-out prompts with base and aligned model, and scores both.

    Writes figures, pictures and weights.

    Args:
        rewards: judges of single images.
        features: what sees how different images look: diversity, and displacement from the base.
        max_prompts: how many held-out prompts are used, evenly spread; 0 generates and scores nothing.
        images_per_prompt: images of each prompt; the same seeds for both models.
        num_steps: DDIM steps per image.
        guidance: weight of classifier-free guidance; 1 switches it off.
        seed: seed of the first image.
        sheet_prompts: how many prompts the picture shows.
        base_pictures: a folder that keeps what the base drew, for other runs that draw the same of it.
    """

    def __init__(
        self,
        rewards: list[Reward] | None = None,
        features: Features | None = None,
        max_prompts: int = 64,
        images_per_prompt: int = 4,
        num_steps: int = 20,
        guidance: float = 7.5,
        seed: int = 1000,
        sheet_prompts: int = 10,
        base_pictures: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("max_prompts", max_prompts, 0),
            ("images_per_prompt", images_per_prompt, 1),
            ("num_steps", num_steps, 1),
            ("sheet_prompts", sheet_prompts, 1),
        ):
            if value < least:
                raise ValueError(f"Evaluation: {name} must be at least {least}, got {value}")
        self.rewards, self.features = rewards or [], features
        self.max_prompts, self.images_per_prompt, self.sheet_prompts = (
            max_prompts,
            images_per_prompt,
            sheet_prompts,
        )
        self.num_steps, self.guidance, self.seed = num_steps, guidance, seed
        self.base_pictures = base_pictures
        self._started = time.monotonic()
        self._facts: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the trained network; the command validates and so evaluates it next."""
        assert isinstance(pl_module, AlignModule)
        self._facts = {
            "steps": trainer.global_step,
            "train_seconds": round(time.monotonic() - self._started, 1),
        }
        folder = _folder(trainer)
        policy = pl_module.whole_policy(wanted=trainer.is_global_zero)
        if trainer.is_global_zero and pl_module.conditioner is not None:
            pl_module.conditioner.save(policy, folder)
        elif trainer.is_global_zero:
            pl_module.backbone.save(policy, folder)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AlignModule)
        if trainer.state.fn != "validate":
            return
        folder = _folder(trainer)
        pl_module.eval()
        policy = pl_module.whole_policy(wanted=trainer.is_global_zero)
        if trainer.is_global_zero and not is_told():
            with cut_short():
                self.evaluate(trainer, pl_module, policy, folder)
        trainer.strategy.barrier()

    def evaluate(self, trainer: pl.Trainer, module: AlignModule, policy: nn.Module, folder: Path) -> None:
        """Writes ``summary.json`` and ``before_after.png``, and prints the comparison.

        Args:
            trainer: what the numbers of the run are read from.
            module: the run.
            policy: its policy, as one that runs without the other processes.
            folder: where to.
        """
        summary: dict[str, Any] = {
            "objective": type(module.objective).__name__,
            **self._facts,
            **module.outcome,
            "held_out": {
                name.removeprefix("val/"): round(float(value), 6)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/")
            },
        }
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, AlignData) and data.facts():
            summary["data"] = data.facts()
        if module.resuming.changes:
            summary["changes"] = module.resuming.changes
        prompts = self.prompts_of(data)
        if prompts:
            summary |= self._compared(module, policy, prompts, folder)
        summary["peak_memory_gb"] = round(_peak_memory_gb(), 2)
        write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        rank_zero_info(f"this run is in {folder}")

    def prompts_of(self, data: object) -> list[str]:
        """Held-out prompts that pictures are drawn of."""
        prompts = data.held_out_prompts() if isinstance(data, AlignData) else []
        return evenly(prompts, self.max_prompts)

    def _compared(
        self, module: AlignModule, policy: nn.Module, prompts: list[str], folder: Path
    ) -> dict[str, Any]:
        options = {
            "images_per_prompt": self.images_per_prompt,
            "seed": self.seed,
            "num_steps": self.num_steps,
            "guidance": self.guidance,
        }
        base = self._base(module, prompts, options)
        aligned = {
            name: draw(module.backbone, policy, prompts, **options, tokens_ULD=told, label=name)  # type: ignore[arg-type]
            for name, told in audiences(module, ALIGNED).items()
        }
        shown = evenly(range(len(prompts)), self.sheet_prompts)
        seeds = range(min(SHEET_SEEDS, self.images_per_prompt))
        sheet = contact_sheet(
            [to_pictures(image[shown, m]) for m in seeds for image in (base, *aligned.values())],
            ["base", *aligned] * len(seeds),
            [prompts[i] for i in shown],
        )
        with whole(folder / SHEET) as partial:
            sheet.save(partial, "PNG")
        base_scores = score(base, prompts, rewards=self.rewards, features=self.features)
        scores = {
            name: score(image, prompts, rewards=self.rewards, features=self.features)
            for name, image in aligned.items()
        }
        reports = {name: compare(prompts, base_scores, scored) for name, scored in scores.items()}
        for name, report in reports.items():
            whom = "" if name == ALIGNED else f"for {name}: "
            rank_zero_info(
                f"{whom}{len(prompts)} held-out prompts x {self.images_per_prompt}, mean [95 % interval]\n"
                f"{table(report)}"
            )
        if ALIGNED in reports:
            return {"prompts": prompts, **options, "scores": reports[ALIGNED]}
        # what it matters for whom a picture is drawn: same prompts and seeds, told of one and of the other
        contrasts = {
            f"{name} - {other}": compare(prompts, scores[other], scores[name])
            for name, other in permutations(scores, 2)
        }
        return {"prompts": prompts, **options, "audiences": reports, "contrasts": contrasts}

    def _base(self, module: AlignModule, prompts: list[str], options: dict[str, Any]) -> Tensor:
        """Pictures of what the policy started from."""
        with module.base_network() as network:

            def drawn() -> Tensor:
                return draw(module.backbone, network, prompts, **options, label="base")

            if self.base_pictures is None:
                return drawn()
            name = key(module.backbone, network, module.device, prompts, options, DRAWN)
            return kept(Path(self.base_pictures), name, drawn)


def _folder(trainer: pl.Trainer) -> Path:
    """The run's folder. To be called by every process: Lightning asks the first one."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _peak_memory_gb() -> float:
    """Largest resident size of this process so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
