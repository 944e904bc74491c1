"""What the trials of a sweep have in common: one cache of latents and texts, and the reference's answers."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from alignkit.declared import declared
from alignkit.mistakes import listed
from alignkit.planning.command import counts
from alignkit.planning.run import run_of
from alignkit.rules import bank_knows_the_answers

SHARED = ("cache", "bank", "pictures")
BOTH, CACHE, NONE = "both", "cache", "none"
# keys, or what they are a part of, that say what a cache holds
OF_CACHE = (
    "backbone",
    "data.train",
    "data.validation",
    *(f"data.{name}" for name in ("resolution", "max_pixels", "crop_shift", "flip", "bucket_step", "cache")),
)
# that leave a cache as it is
NOT_OF_CACHE = ("backbone.lora", "backbone.gradient_checkpointing", "backbone.caption_dropout")
# that say what the reference is asked, and how often
OF_BANK = (
    *OF_CACHE,
    "seed_everything",
    "sampler",
    "reference",
    "conditioner",
    "data.batch_size",
    "data.bank",
    "data.ties",
    "model.compile",
    *(
        f"trainer.{name}"
        for name in (
            "accelerator",
            "precision",
            "devices",
            "num_nodes",
            "max_steps",
            "max_epochs",
            "accumulate_grad_batches",
        )
    ),
)


class Shared(NamedTuple):
    """What is made once for all trials.

    Args:
        cache: whether their pictures and prompts are encoded.
        bank: whether the reference is asked, for those trials that can be told what it says.
        pictures: whether the base's of held-out prompts are kept; each is known by all that it follows from.
        notes: why there is not more, in words.
    """

    cache: bool
    bank: bool
    pictures: bool
    notes: tuple[str, ...]


def shared(config: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], count: int, wanted: str) -> Shared:
    """Decides what is worth making, and can be.

    Args:
        config: whole, without what is varied.
        trials: whole configs of those that are known.
        count: how many trials there will be.
        wanted: "both", "cache" or "none".
    """
    moved = {key for trial in trials for key in changed(config, trial)}
    no_cache = _refusal("cache", wanted == NONE, config, moved - _within(moved, NOT_OF_CACHE), OF_CACHE)
    no_bank = _refusal("bank", wanted != BOTH, config, moved, OF_BANK)
    unable = [reason for reason in map(unbanked, trials) if reason]
    no_bank = no_bank or (unable[0] if len(unable) == len(trials) else "")
    if not (no_cache and no_bank):
        visits, needed = _visits(config, count)
        no_cache = no_cache or _unworthy(visits, 1)
        no_bank = no_bank or _unworthy(visits, needed)
    told = {"cache of pictures and prompts": no_cache, "bank of the reference": no_bank}
    notes = tuple(f"no shared {what}: {reason}" for what, reason in told.items() if reason)
    evaluation = config["evaluation"]
    draws = bool(config["data"].get("validation") and evaluation["max_prompts"])
    return Shared(
        not no_cache, not no_bank, draws and wanted != NONE and not evaluation["base_pictures"], notes
    )


def unbanked(config: Mapping[str, Any]) -> str:
    """Why a run cannot be told what its reference says; empty if it can."""
    return bank_knows_the_answers(declared(config)._replace(banked=True))


def changed(config: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Keys in which two whole configs differ."""
    ours, theirs = flat(config), flat(other)
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config's values by key; a component's class stands under the component's own."""
    return dict(_leaves(config, ""))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield key, value if isinstance(value, int | float | str | None) else json.dumps(value, default=str)
        return
    for name, inner in value.items():
        if name in ("init_args", "class_path"):
            yield from _leaves(inner, key)
        elif f"{key}.{name}" not in (".config", ".run", ".vars", "model.optimizer"):
            yield from _leaves(inner, f"{key}.{name}".lstrip("."))


def _refusal(
    name: str, is_off: bool, config: Mapping[str, Any], moved: Collection[str], keys: Sequence[str]
) -> str:
    if is_off:
        return "--share leaves it out"
    if config["data"].get(name):
        return f"the config has its own, data.{name}: {config['data'][name]}"
    if differing := sorted(_within(moved, keys)):
        return f"trials differ in {listed(differing)}, which it depends on"
    return ""


def _within(moved: Collection[str], keys: Sequence[str]) -> set[str]:
    """Those that are among keys, or a part of one of them."""
    return {key for key in moved if any(f"{key}.".startswith(f"{whole}.") for whole in keys)}


def _visits(config: Mapping[str, Any], count: int) -> tuple[float, int]:
    """How often all trials together see each pair, endless if unknown; how often a bank asks about it."""
    pairs, _ = counts(dict(config), None, [])
    epochs = run_of(config, pairs).epochs
    return (math.inf, 1) if epochs is None else (count * epochs, math.ceil(epochs))


def _unworthy(visits: float, needed: int) -> str:
    if visits > needed:
        return ""
    return f"all trials together see each pair {visits:.2g} times: making it would take as long as it saves"
