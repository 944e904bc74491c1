"""What combines with what: rules over what the parts of a run declare, asked before any of it is loaded."""

from collections.abc import Callable
from typing import NamedTuple

from alignkit.compiling import Compile
from alignkit.components import Backbone, Conditioner, Objective, Reference, Sampler, Weighting
from alignkit.policy import LoRA, own_reference

# what the trainer may compute in, by its own names; the weights that are trained stay float32 in all of them
PRECISIONS = {
    "32-true": "float32",
    "32": "float32",
    "bf16-mixed": "bfloat16",
    "bf16": "bfloat16",
    "16-mixed": "float16",
    "16": "float16",
}
FROZEN_COPY = "reference: alignkit.policy.FrozenCopy"


class Combination(NamedTuple):
    """The parts of a run, as far as rules look at them. What loads weights is there by its class alone.

    Args:
        objective: the loss.
        sampler: which points the networks are asked about.
        backbone: class of the model.
        lora: the backbone's adapters; None: it has none.
        frozen_dtype: how the backbone holds weights that are not trained.
        weighting: how much each prompt counts.
        conditioner: class of what the policy is told besides the prompt.
        reference: class of the reference that is named; None: the policy's own.
        precision: the trainer's, in its words; None where that is not known yet.
        averages: how many averages of the policy the run keeps for itself.
        compile: how policy and reference are compiled.
        banked: whether a bank says what the reference says.
    """

    objective: Objective
    sampler: Sampler
    backbone: type[Backbone]
    lora: LoRA | None = None
    frozen_dtype: str = "float32"
    weighting: Weighting | None = None
    conditioner: type[Conditioner] | None = None
    reference: type[Reference] | None = None
    precision: str | None = None
    averages: int = 0
    compile: Compile | None = None
    banked: bool = False

    @property
    def compares(self) -> bool:
        """Whether there is a reference at all: the objective decides."""
        return "ref_logp" in self.objective.uses

    @property
    def against(self) -> type[Reference]:
        """The reference that is named, or else the policy's own."""
        own = own_reference(lora=self.lora is not None, conditioner=self.conditioner is not None)
        return self.reference or own


def broken(parts: Combination) -> list[str]:
    """What is wrong with a combination: for every rule that it breaks, the reason and what to do."""
    return [told for rule in RULES if (told := rule(parts))]


def check(parts: Combination) -> None:
    """Refuses a combination.

    Raises:
        ValueError: it breaks rules.
    """
    if found := broken(parts):
        raise ValueError("\n".join(found))


def sampler_has_a_reference(parts: Combination) -> str:
    """A sampler that asks the reference needs an objective that has one."""
    if not parts.sampler.asks_reference or parts.compares:
        return ""
    sampler, objective = _name(parts.sampler), _name(parts.objective)
    return (
        f"{sampler} asks the reference, but {objective} looks at none; choose an objective "
        "that looks at one, or a sampler that needs none"
    )


def weighting_finds_what_it_reads(parts: Combination) -> str:
    """A weighting reads only what the objective has computed."""
    missing = (parts.weighting.uses if parts.weighting else frozenset()) - parts.objective.uses
    if not missing:
        return ""
    return (
        f"{_name(parts.weighting)} reads {', '.join(sorted(missing))}, which {_name(parts.objective)} does "
        "not look at; choose an objective that looks at the reference"
    )


def reference_is_asked(parts: Combination) -> str:
    """A reference that nobody asks is a mistake."""
    if parts.reference is None or parts.compares:
        return ""
    return (
        f"reference: {parts.reference.__name__} is given, but {_name(parts.objective)} looks at no "
        "reference; leave it out"
    )


def reference_has_what_it_switches_off(parts: Combination) -> str:
    """Adapters off needs adapters; tokens off needs a conditioner, else policy and reference are the same."""
    needs = parts.against.needs
    if not parts.compares or needs is None or getattr(parts, needs) is not None:
        return ""
    name = parts.against.__name__
    if needs == "lora":
        return (
            f"{name}: the policy has no adapters to switch off; give the backbone a lora, or use FrozenCopy"
        )
    return (
        f"{name}: the policy is told nothing that could be switched off, so it would be its own reference "
        "and every margin 0; give a conditioner, or leave the reference out"
    )


def conditioner_is_trained_alone(parts: Combination) -> str:
    """A conditioner freezes the network that it is attached to, adapters with it."""
    if parts.conditioner is None or parts.lora is None:
        return ""
    return (
        f"{parts.conditioner.__name__}: with a conditioner, that alone is trained, and the adapters of the "
        "backbone's lora would never be; leave lora out of the backbone"
    )


def conditioner_has_a_place(parts: Combination) -> str:
    """A conditioner's tokens need a network that reads them."""
    if parts.conditioner is None or parts.backbone.reads_tokens:
        return ""
    return (
        f"{parts.backbone.__name__}: its networks have no place for the tokens of "
        f"{parts.conditioner.__name__}; leave the conditioner out, or use a backbone that has, such as "
        "StableDiffusion"
    )


def renewal_reaches_the_reference(parts: Combination) -> str:
    """Rounds need a reference that can take later weights, and that runs with what is trained."""
    if not parts.sampler.renews or not parts.compares:
        return ""
    sampler = _name(parts.sampler)
    if parts.conditioner is not None:
        return (
            f"{sampler} goes on in rounds against the previous policy, but a reference is told nothing of "
            f"{parts.conditioner.__name__}, which alone is trained: it would never change; give one round, "
            "or leave the conditioner out"
        )
    if parts.against.renewable:
        return ""
    return (
        f"{sampler} goes on in rounds against the previous policy, but {parts.against.__name__} is the "
        f"policy's own base and cannot take later weights; give {FROZEN_COPY}"
    )


def weights_are_float32(parts: Combination) -> str:
    """What is trained stays float32, whatever is computed in."""
    if parts.precision is None or parts.precision in PRECISIONS:
        return ""
    if parts.precision in ("bf16-true", "16-true"):
        kind, spacing = ("bfloat16", "1/256") if parts.precision == "bf16-true" else ("float16", "1/2048")
        return (
            f"trainer.precision {parts.precision} would hold the trained weights in {kind}, whose numbers "
            f"stand {spacing} of their size apart: the steps of fine-tuning are smaller and would be lost; "
            f"use {parts.precision.replace('true', 'mixed')}, which keeps float32 weights and computes in "
            f"{kind}, and the backbone's frozen_dtype for what is not trained"
        )
    return (
        f"trainer.precision must be 32-true, bf16-mixed or 16-mixed, got {parts.precision}: others change "
        "the policy's weights and not the reference's, so that the first margin is not 0"
    )


def frozen_weights_are_what_is_computed_in(parts: Combination) -> str:
    """Frozen weights may be held in half precision where the same numbers are computed with anyhow."""
    frozen, computed = parts.frozen_dtype, PRECISIONS.get(parts.precision or "")
    backbone = parts.backbone.__name__
    if frozen == "float32":
        return ""
    if computed not in (None, frozen):
        wanted = {"bfloat16": "bf16-mixed", "float16": "16-mixed"}.get(frozen, "32-true")
        return (
            f"{backbone}: frozen_dtype {frozen} needs trainer.precision {wanted}, got {parts.precision}, "
            f"which computes in {computed}: policy and reference would not run on the same numbers, or not "
            "at all; change one of the two"
        )
    if parts.conditioner is not None:
        return (
            f"{backbone}: frozen_dtype {frozen} does not go with {parts.conditioner.__name__}, which makes "
            "what it trains in the type of the weights beside it; leave frozen_dtype out"
        )
    if parts.lora is not None and parts.lora.dora:
        return (
            f"{backbone}: frozen_dtype {frozen} does not go with lora.dora, whose magnitudes are the lengths "
            "of the frozen weights: of rounded ones they are others, and the first margin is not 0; leave "
            "one of the two out"
        )
    if parts.lora is None and not parts.compares:
        return (
            f"{backbone}: frozen_dtype {frozen} is given, but nothing is frozen: all weights are trained and "
            f"{_name(parts.objective)} has no reference; leave it out, or give a lora"
        )
    return ""


def compiled_networks_round_alike(parts: Combination) -> str:
    """Inductor rounds as the uncompiled networks do in mixed precision, not in single."""
    how = parts.compile
    if how is None or how.backend != "inductor" or PRECISIONS.get(parts.precision or "") != "float32":
        return ""
    if not parts.compares:
        return ""
    return (
        f"model.compile needs trainer.precision bf16-mixed or 16-mixed, got {parts.precision}: in single "
        "precision inductor adds in another order with gradient than without, and the first margin is not "
        "exactly 0; change the precision, or leave compile out"
    )


def bank_knows_the_answers(parts: Combination) -> str:
    """A bank holds what a reference said of points that nothing but batch and key decide."""
    if not parts.banked:
        return ""
    if not parts.compares:
        return f"data.bank is given, but {_name(parts.objective)} looks at no reference; leave it out"
    if parts.sampler.fixed:
        return ""
    return (
        f"data.bank: {_name(parts.sampler)} asks the networks for its points, so that no reference's answers "
        "can be known before; leave the bank out, or use a sampler such as SharedNoise"
    )


def one_average(parts: Combination) -> str:
    """Two averages would each swap the other's weights in and out."""
    if parts.averages < 2:
        return ""
    return f"trainer.callbacks: one EMA at most, got {parts.averages}; leave one"


RULES: tuple[Callable[[Combination], str], ...] = (
    sampler_has_a_reference,
    weighting_finds_what_it_reads,
    reference_is_asked,
    reference_has_what_it_switches_off,
    conditioner_is_trained_alone,
    conditioner_has_a_place,
    renewal_reaches_the_reference,
    weights_are_float32,
    frozen_weights_are_what_is_computed_in,
    compiled_networks_round_alike,
    bank_knows_the_answers,
    one_average,
)


def _name(part: object) -> str:
    return type(part).__name__
