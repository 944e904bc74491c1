"""What a config says of the parts that rules look at, without loading any of them."""

from collections.abc import Mapping
from typing import Any

from alignkit.building import build
from alignkit.callbacks import EMA
from alignkit.compiling import Compile
from alignkit.components import Backbone
from alignkit.policy import LoRA
from alignkit.rules import Combination
from alignkit.trust import imported


def declared(config: Mapping[str, Any]) -> Combination:
    """What a whole config says of its parts. Loads no weights.

    Args:
        config: components are written out, as in ``alignkit.building.read``, and interpolations resolved.

    Raises:
        ValueError: a part refuses its settings.
    """
    made = build(dict(config), ("objective", "sampler", "weighting"))
    backbone, trainer = config["backbone"], config.get("trainer") or {}
    settings, lora = backbone.get("init_args") or {}, None
    if (said := settings.get("lora")) is not None:
        lora = LoRA(**{**said, "targets": tuple(said["targets"])} if "targets" in said else said)
    precision, how = trainer.get("precision"), (config.get("model") or {}).get("compile")
    named = trainer.get("callbacks") or []
    callbacks = named if isinstance(named, list) else [named]  # one may stand without a list
    return Combination(
        made["objective"],
        made["sampler"],
        named_class(backbone),
        lora=lora,
        frozen_dtype=settings.get("frozen_dtype") or Backbone.frozen_dtype,
        weighting=made.get("weighting"),
        conditioner=named_class(config.get("conditioner")),
        reference=named_class(config.get("reference")),
        precision="32-true" if precision is None else str(precision),
        averages=sum(issubclass(named_class(callback), EMA) for callback in callbacks),
        compile=None if how is None else Compile(**how),
        banked=bool((config.get("data") or {}).get("bank")),
    )


def named_class(said: Any) -> Any:
    """The class that a config names; None if it names none."""
    if not said:
        return None
    return imported(said if isinstance(said, str) else said["class_path"])
