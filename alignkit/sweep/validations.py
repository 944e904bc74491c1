"""What a run writes down at each validation, so that whoever watches it may end it."""

import json
from pathlib import Path

import lightning.pytorch as pl

from alignkit.evaluation.callback import Evaluation
from alignkit.evaluation.compare import draw, score
from alignkit.module import AlignModule
from alignkit.resuming import Onlooker

FILE = "validations.jsonl"


class Validations(Onlooker):
    """Writes a held-out measure into ``RUN/validations.jsonl`` at every validation of training.

    Args:
        measure: what a validation logs, without ``val/``; or the class of a reward that judges the run's
            pictures: one picture of each of its held-out prompts is drawn then, as its evaluation draws them.
    """

    def __init__(self, measure: str) -> None:
        super().__init__()
        self.measure = measure

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AlignModule)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = self._judged(trainer, pl_module)
        if value is None:
            value = float(trainer.callback_metrics[f"val/{self.measure}"])
        if trainer.is_global_zero:
            with Path(trainer.default_root_dir, FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.global_step, "value": value}) + "\n")

    def _judged(self, trainer: pl.Trainer, module: AlignModule) -> float | None:
        """What the reward of that name says on average; None if there is none. Every process must ask."""
        evaluation = next(one for one in trainer.callbacks if isinstance(one, Evaluation))  # type: ignore[attr-defined]
        judges = [reward for reward in evaluation.rewards if type(reward).__name__ == self.measure]
        if not judges:
            return None
        policy = module.whole_policy(wanted=trainer.is_global_zero)
        if not trainer.is_global_zero:
            return 0.0
        prompts = evaluation.prompts_of(trainer.datamodule)  # type: ignore[attr-defined]
        drawn = draw(
            module.backbone,
            policy,
            prompts,
            images_per_prompt=1,
            seed=evaluation.seed,
            num_steps=evaluation.num_steps,
            guidance=evaluation.guidance,
            label="",
        )
        found = score(drawn, prompts, rewards=judges, features=None)
        return float(found.reward_PS[self.measure].mean())


def written(run: Path) -> dict[int, float]:
    """What a run wrote down so far, by its step; a line that is being written is left out."""
    path = run / FILE
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    said = [json.loads(line) for line in lines]
    return {one["step"]: one["value"] for one in said}
