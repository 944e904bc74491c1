"""By which held-out measure a sweep's trials are told apart."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from alignkit.declared import declared
from alignkit.evaluation.statistics.comparisons import DISPLACEMENT, DIVERSITY, VENDI
from alignkit.mistakes import UsageError, listed

SPREADS = (DIVERSITY, VENDI, DISPLACEMENT)
ACCURACY, LOSS = "rewards/accuracies", "loss"
LOWER = ("loss", "mse", "change", DISPLACEMENT)
WAYS = ("higher", "lower")


class Metric(NamedTuple):
    """A measure that every run writes into its summary.

    Args:
        name: a reward's class, a measure of diversity, or what a validation logs, without ``val/``.
        higher: whether more of it is better.
        drawn: whether it is of pictures, compared with the base's; else of held-out pairs.
    """

    name: str
    higher: bool
    drawn: bool

    def __str__(self) -> str:
        return f"gain in {self.name}" if self.drawn else f"held-out {self.name}"

    @property
    def way(self) -> str:
        """What is better, in words."""
        return f"{WAYS[not self.higher]} is better"

    def of(self, summary: Mapping[str, Any]) -> float:
        """Its value.

        Raises:
            ValueError: the run reports none, or one that is not finite.
        """
        there = summary.get("scores" if self.drawn else "held_out") or {}
        if self.name not in there:
            raise ValueError(f"the run reports no {self}; it has {listed(list(there), 12)}")
        found = there[self.name]
        value = float((found.get("difference") or found["aligned"])["mean"] if self.drawn else found)
        if not math.isfinite(value):
            raise ValueError(f"{self} is {value}")
        return value


def metric(said: str | None, config: Mapping[str, Any]) -> Metric:
    """What ``--metric`` means; without it, the first reward that judges pictures, or else held-out pairs.

    Args:
        said: a name, perhaps with :higher or :lower; None if not given.
        config: of a trial, whole.

    Raises:
        UsageError: no run of this config reports it.
    """
    rewards = judges(config)
    name, colon, way = (said or _default(config, rewards)).partition(":")
    if colon and way not in WAYS:
        raise UsageError(f"--metric {said}: after the colon must stand higher or lower, got {way!r}")
    higher = way == WAYS[0] if colon else not name.endswith(LOWER)
    drawn = name in rewards or name in SPREADS
    if drawn and (reason := _undrawn(config)):
        raise UsageError(f"--metric {name}: {reason}; choose one of held-out pairs, such as {ACCURACY}")
    if not drawn and name[:1].isupper():
        raise UsageError(
            f"--metric {name}: no reward of that name judges this config's runs; evaluation.rewards has "
            f"{listed(rewards)}"
        )
    return Metric(name, higher, drawn)


def judges(config: Mapping[str, Any]) -> list[str]:
    """Class names of the rewards that judge a run's pictures."""
    rewards = (config.get("evaluation") or {}).get("rewards") or []
    return [str(reward["class_path"]).rpartition(".")[2] for reward in rewards]


def _default(config: Mapping[str, Any], rewards: list[str]) -> str:
    if rewards and not _undrawn(config):
        return rewards[0]
    # the loss of one beta says nothing about another's
    return ACCURACY if declared(config).objective.reads == "pair" else LOSS


def _undrawn(config: Mapping[str, Any]) -> str:
    """Why no pictures of a run are compared with the base's; empty if they are."""
    if not config["data"].get("validation"):
        return "the config has no data.validation"
    if not config["evaluation"]["max_prompts"]:
        return "evaluation.max_prompts is 0"
    return "a conditioner's pictures are for several audiences" if config.get("conditioner") else ""
