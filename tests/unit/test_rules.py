"""What combines with what: every rule, what it says, and that it is asked before anything is loaded."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from alignkit import rules
from alignkit.catalog import discover
from alignkit.compiling import Compile
from alignkit.components import Conditioner, Objective, Reference, Sampler, Weighting
from alignkit.declared import declared
from alignkit.module import AlignModule
from alignkit.naming import expand_config
from alignkit.policy import AdaptersOff, FrozenCopy, LoRA, TokensOff
from alignkit.rules import Combination, broken
from alignkit.testing import ToyBackbone


class Comparing(Objective):
    """Looks at the reference."""

    uses = frozenset({"logp", "ref_logp"})

    def forward(self, scored: Any, batch: Any) -> Any:
        raise NotImplementedError

    def initial_loss(self) -> float | None:
        return None


class Alone(Comparing):
    """Looks at none."""

    uses = frozenset({"logp"})


class Plain(Sampler):
    """Asks nobody."""

    def forward(self, *given: Any, **told: Any) -> Any:
        raise NotImplementedError


class Asking(Plain):
    """Asks the reference."""

    asks_reference: ClassVar[bool] = True


class InRounds(Plain):
    """Renews the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.renews = True


class Reading(Weighting):
    """Reads what the reference says."""

    uses = frozenset({"logp", "ref_logp"})

    def forward(self, scored: Any, batch: Any) -> Any:
        raise NotImplementedError


class Telling(Conditioner):
    """Is trained alone."""

    def forward(self, *given: Any, **told: Any) -> Tensor:
        raise NotImplementedError

    attach = audiences = add_options = chosen = save = load = forward  # type: ignore[assignment]


class Deaf(ToyBackbone):
    """Reads no tokens."""

    reads_tokens: ClassVar[bool] = False


def of(objective: Objective | None = None, sampler: Sampler | None = None, **parts: Any) -> Combination:
    parts = {"precision": "32-true", **parts}
    return Combination(objective or Comparing(), sampler or Plain(), ToyBackbone, **parts)


LORA = LoRA(rank=2)
# what is wrong, and what the message must say
BROKEN = {
    "a sampler without its reference": (
        of(Alone(), Asking()),
        "Asking asks the reference, but Alone looks at none; choose an objective",
    ),
    "a weighting without its log-likelihoods": (
        of(Alone(), weighting=Reading()),
        "Reading reads ref_logp, which Alone does not look at; choose an objective",
    ),
    "a reference that nobody asks": (
        of(Alone(), reference=FrozenCopy),
        "reference: FrozenCopy is given, but Alone looks at no reference; leave it out",
    ),
    "a bank of no reference": (
        of(Alone(), banked=True),
        "data.bank is given, but Alone looks at no reference; leave it out",
    ),
    "a bank of points that a network decides": (
        of(banked=True),
        "data.bank: Plain asks the networks for its points, .* leave the bank out",
    ),
    "adapters off without adapters": (
        of(reference=AdaptersOff),
        "AdaptersOff: the policy has no adapters to switch off; give the backbone a lora, or use FrozenCopy",
    ),
    "tokens off without tokens": (
        of(reference=TokensOff),
        "it would be its own reference and every margin 0; give a conditioner",
    ),
    "tokens off with adapters": (of(reference=TokensOff, lora=LORA), "give a conditioner"),
    "adapters off with a conditioner": (of(reference=AdaptersOff, conditioner=Telling), "has no adapters"),
    "a conditioner with adapters": (
        of(conditioner=Telling, lora=LORA),
        "Telling: with a conditioner, that alone is trained, and the adapters .* leave lora out",
    ),
    "a conditioner that no network hears": (
        Combination(Comparing(), Plain(), Deaf, conditioner=Telling),
        "Deaf: its networks have no place for the tokens of Telling; leave the conditioner out",
    ),
    "rounds against the adapters' own base": (
        of(sampler=InRounds(), lora=LORA),
        "AdaptersOff is the policy's own base and cannot take later weights; "
        "give reference: alignkit.policy.FrozenCopy",
    ),
    "rounds with a conditioner": (
        of(sampler=InRounds(), conditioner=Telling, reference=FrozenCopy),
        "a reference is told nothing of Telling, which alone is trained: it would never change",
    ),
    "weights in half precision": (
        of(precision="bf16-true"),
        "would hold the trained weights in bfloat16, .* 1/256 .* use bf16-mixed",
    ),
    "weights in half precision of the other kind": (of(precision="16-true"), "1/2048 .* use 16-mixed"),
    "weights in double precision": (
        of(precision="64-true"),
        "must be 32-true, bf16-mixed or 16-mixed, got 64-true: others change the policy's weights",
    ),
    "frozen weights that are not computed with": (
        of(lora=LORA, frozen_dtype="float16", precision="bf16-mixed"),
        "ToyBackbone: frozen_dtype float16 needs trainer.precision 16-mixed, got bf16-mixed, which computes",
    ),
    "half frozen weights in single precision": (
        of(lora=LORA, frozen_dtype="bfloat16"),
        "frozen_dtype bfloat16 needs trainer.precision bf16-mixed, got 32-true, which computes in float32",
    ),
    "half frozen weights beside a conditioner": (
        of(conditioner=Telling, frozen_dtype="bfloat16", precision="bf16-mixed"),
        "frozen_dtype bfloat16 does not go with Telling",
    ),
    "half frozen weights whose lengths are trained": (
        of(lora=LoRA(dora=True), frozen_dtype="bfloat16", precision="bf16-mixed"),
        "does not go with lora.dora, whose magnitudes are the lengths of the frozen weights",
    ),
    "nothing to freeze": (
        of(Alone(), frozen_dtype="bfloat16", precision="bf16-mixed"),
        "nothing is frozen: all weights are trained and Alone has no reference",
    ),
    "inductor in single precision": (
        of(compile=Compile()),
        "model.compile needs trainer.precision bf16-mixed or 16-mixed, got 32-true",
    ),
    "two averages": (of(averages=2), "trainer.callbacks: one EMA at most, got 2; leave one"),
}
FINE = {
    "a full fine-tune": of(),
    "against a copy": of(reference=FrozenCopy),
    "adapters": of(lora=LORA),
    "adapters against a copy": of(lora=LORA, reference=FrozenCopy),
    "a conditioner": of(conditioner=Telling),
    "a network that hears nothing and is told nothing": Combination(Comparing(), Plain(), Deaf),
    "a conditioner against a copy": of(conditioner=Telling, reference=FrozenCopy),
    "no reference": of(Alone()),
    "no reference, with adapters": of(Alone(), lora=LORA),
    "no reference, with a conditioner": of(Alone(), conditioner=Telling),
    "a sampler with its reference": of(sampler=Asking()),
    "a weighting with its log-likelihoods": of(weighting=Reading()),
    "rounds": of(sampler=InRounds(), averages=1),
    "rounds with adapters": of(sampler=InRounds(), lora=LORA, reference=FrozenCopy),
    "mixed precision": of(precision="bf16-mixed"),
    "a half copy": of(frozen_dtype="bfloat16", precision="bf16-mixed"),
    "half frozen weights": of(lora=LORA, frozen_dtype="float16", precision="16-mixed"),
    "half frozen weights without a reference": of(
        Alone(), lora=LORA, frozen_dtype="bfloat16", precision="bf16-mixed"
    ),
    "an average": of(averages=1),
    "a module that has no trainer yet": of(lora=LORA, frozen_dtype="bfloat16", precision=None),
    "inductor in mixed precision": of(compile=Compile(), precision="bf16-mixed"),
    "inductor without a reference": of(Alone(), compile=Compile()),
    "networks that are traced alone": of(compile=Compile(backend="eager")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_told_with_what_to_do(name: str) -> None:
    parts, message = BROKEN[name]
    assert len(broken(parts)) == 1
    with pytest.raises(ValueError, match=message):
        rules.check(parts)


@pytest.mark.parametrize("name", FINE)
def test_what_combines_is_let_through(name: str) -> None:
    assert broken(FINE[name]) == []


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_rule_is_broken_by_one_of_the_examples(rule: Callable[[Combination], str]) -> None:
    assert any(rule(parts) for parts, _ in BROKEN.values())


def test_every_broken_rule_is_told() -> None:
    parts = of(Alone(), Asking(), reference=FrozenCopy, precision="16-true")
    with pytest.raises(ValueError, match=r"Asking asks.*\n.*FrozenCopy is given.*\n.*16-true would hold"):
        rules.check(parts)


def test_a_module_refuses_its_parts_before_anything_is_loaded() -> None:
    class Unloadable(ToyBackbone):
        def build_policy(self) -> Any:
            raise AssertionError("loaded")

    with pytest.raises(ValueError, match="Asking asks the reference, but Alone looks at none"):
        AlignModule(Alone(), Asking(), Unloadable(), torch.optim.SGD)


CONFIG = {
    "objective": {"name": "DiffusionDPO", "beta": 3.0},
    "sampler": {"name": "SelfPlay", "rounds": 2},
    "weighting": "MinorityAware",
    "backbone": {"name": "StableDiffusion", "path": "no/where", "lora": {"rank": 3, "targets": ["to_q"]}},
    "conditioner": {"class_path": "alignkit_ppd.conditioner.UserTokens", "init_args": {}},
    "reference": {"class_path": "alignkit.policy.FrozenCopy"},
    "model": {"compile": {"backend": "eager", "mode": "default", "dynamic": None}},
    "trainer": {
        "precision": "bf16-mixed",
        "callbacks": [
            {"class_path": "alignkit.callbacks.EMA"},
            {"class_path": "alignkit.callbacks.Throughput"},
        ],
    },
}


def test_a_config_declares_its_parts_though_nothing_of_it_can_be_loaded() -> None:
    parts = declared(expand_config(discover(), CONFIG))
    assert (parts.objective.beta, parts.sampler.renews, parts.sampler.asks_reference) == (3.0, True, True)
    assert type(parts.weighting).__name__ == "MinorityAware"
    assert parts.backbone.__name__ == "StableDiffusion"
    assert parts.lora == LoRA(rank=3, targets=("to_q",))
    assert parts.conditioner is not None
    assert parts.conditioner.__name__ == "UserTokens"
    assert parts.reference is FrozenCopy
    assert parts.compile == Compile(backend="eager")
    assert (parts.precision, parts.averages, parts.frozen_dtype) == ("bf16-mixed", 1, "float32")


def test_a_config_that_says_little_declares_defaults() -> None:
    little = {name: CONFIG[name] for name in ("objective", "sampler")} | {"backbone": "StableDiffusion"}
    parts = declared(expand_config(discover(), little))
    assert (parts.lora, parts.reference, parts.precision) == (None, None, "32-true")
    assert parts.against is FrozenCopy


def test_references_say_what_they_switch_off() -> None:
    """The rules look at these, not at classes: a plugin's reference is judged alike."""
    found = {kind: (kind.needs, kind.renewable) for kind in (FrozenCopy, AdaptersOff, TokensOff)}
    assert found == {
        FrozenCopy: (None, True),
        AdaptersOff: ("lora", False),
        TokensOff: ("conditioner", False),
    }
    assert (Reference.needs, Reference.renewable) == (None, True)


def test_rules_do_not_import_a_library_of_models() -> None:
    code = "import alignkit.rules, sys; sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
