"""What guards say of a step: a line on the screen, and one of the run's file."""

import math
from typing import Any, NamedTuple

from torch import Tensor

from alignkit.guards.spikes import Spread
from alignkit.guards.window import Figures, MicroBatch
from alignkit.mistakes import listed


class Step(NamedTuple):
    """A step, and what guards say of it; flags and figures on the device.

    Args:
        number: of the optimizer step, from 1.
        batches: of this process.
        figures: of all processes.
        spread: of the steps before.
        bad: whether loss or gradient norm is no finite number.
        spiking: whether one of them is far above the steps before.
        skipped: whether the update was left out.
    """

    number: int
    batches: tuple[MicroBatch, ...]
    figures: Figures
    spread: Spread
    bad: Tensor
    spiking: Tensor
    skipped: Tensor

    def row(self) -> list[Tensor]:
        """Its flags and figures, as ``Fact`` has them."""
        figures, spread = self.figures, self.spread
        values = (self.bad, self.spiking, self.skipped, figures.loss, figures.norm)
        return [*(value.float() for value in values), *spread.mean_2, *spread.std_2]


class Fact(NamedTuple):
    """What is known of a step on the host."""

    bad: bool
    spiking: bool
    skipped: bool
    loss: float
    norm: float
    loss_mean: float
    norm_mean: float
    loss_std: float
    norm_std: float

    @classmethod
    def read(cls, row: list[float]) -> "Fact":
        """From the values of ``Step.row``."""
        return cls(*map(bool, row[:3]), *row[3:])


def told(batches: tuple[MicroBatch, ...]) -> list[dict[str, Any]]:
    """Samples and losses of this process's micro-batches; waits for the device."""
    losses = [batch.loss.item() for batch in batches]
    return [
        {
            "micro_batch": place,
            "loss": number(loss),
            "finite": math.isfinite(loss),
            "ids": batch.id_B.tolist(),
            "prompts": list(batch.prompts),
        }
        for place, (batch, loss) in enumerate(zip(batches, losses, strict=True), 1)
    ]


def entry(step: int, fact: Fact, ranks: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """A line of the file: a step, and the samples of all processes."""
    return {
        "step": step,
        "what": "not finite" if fact.bad else "spike",
        "skipped": fact.skipped,
        "loss": number(fact.loss),
        "grad_norm": number(fact.norm),
        "samples": [{"rank": rank, **batch} for rank, batches in enumerate(ranks) for batch in batches],
    }


def sentence(fact: Fact, line: dict[str, Any]) -> str:
    """What is said on the screen of a step."""
    done = "its update was left out" if fact.skipped else "its update was made"
    bad = [batch for batch in line["samples"] if not batch["finite"]]
    others = [batch for batch in line["samples"] if batch["finite"]]
    named = f"samples {_ids(others)}"
    if bad:
        places = [f"micro-batch {batch['micro_batch']} of process {batch['rank']}" for batch in bad]
        named = f"samples {_ids(bad)} ({listed(places, 3)})" + f", with them {_ids(others)}" * bool(others)
    return f"step {line['step']}: {_reason(fact)}; {done}; {named}"


def _ids(batches: list[dict[str, Any]]) -> str:
    return listed([str(sample) for batch in batches for sample in batch["ids"]])


def _reason(fact: Fact) -> str:
    figures = f"loss {fact.loss:.4g}, gradient norm {fact.norm:.4g}"
    if fact.bad:
        return f"{figures}: not finite"
    usual = f"{fact.loss_mean:.4g} +- {fact.loss_std:.2g} and {fact.norm_mean:.4g} +- {fact.norm_std:.2g}"
    return f"{figures}: a spike, the steps before had {usual}"


def number(value: float) -> float | str:
    """A number as JSON has it; others by name."""
    return value if math.isfinite(value) else str(value)
