"""From a backbone to the two networks of a step: the policy that is trained and the reference that is not."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from alignkit.compiling import Compiled
from alignkit.components import Backbone, Denoiser, Reference
from alignkit.sharding import gathered_whole
from alignkit.types import Encoded


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters in place of a full fine-tune (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

    They are float32 whatever is computed in, and have no dropout: with it the policy would not be its
    reference on the first batch, nor policy and reference see the same network on any.

    Args:
        rank: inner width of the adapters.
        alpha: their scale times the rank; equal to the rank in diffusers' scripts.
        targets: ends of the names of the layers that get one, whole words between dots.
        rslora: scales by ``alpha / sqrt(rank)``, so that a higher rank does not learn less
            (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).
        dora: also trains the length of each weight's columns (Liu et al., 2024,
            https://arxiv.org/abs/2402.09353); about a third slower.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA: rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"LoRA: alpha must be positive, got {self.alpha}")
        if not self.targets or not all(self.targets):
            raise ValueError(f"LoRA: targets must name layers, such as to_q, got {list(self.targets)}")


Network = TypeVar("Network", bound=nn.Module)


class Outside(Generic[Network]):
    """Holds a frozen module outside the module tree.

    Checkpoints, optimizer, DDP and ``train()`` do not see it.
    """

    def __init__(self, module: Network) -> None:
        self.module = module.requires_grad_(False).eval()

    def __deepcopy__(self, memo: object) -> "Outside[Network]":
        return self

    def on(self, device: torch.device) -> Network:
        """The module, moved to the device if it is elsewhere."""
        if next(self.module.parameters()).device != device:
            self.module.to(device)
        return self.module


class FrozenCopy(Reference):
    """A second network with the weights that the policy starts from, or starts a round from."""

    _renewed = False
    _hash = ""

    def attach(self, backbone: Backbone, policy: nn.Module) -> None:
        reference = backbone.build_reference(policy)
        if reference is policy:
            raise ValueError(
                f"{type(backbone).__name__}.build_reference returned the policy itself: every margin would "
                "stay 0"
            )
        self._outside, self._policy = Outside(reference), policy

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        yield self._outside.on(next(self._policy.parameters()).device)

    def fingerprint(self) -> str:
        self._hash = self._hash or fingerprint(dict(self._outside.module.named_parameters()))
        return self._hash

    @torch.no_grad()
    def renew(self) -> None:
        policy = dict(self._policy.named_parameters())
        for name, weight in self._outside.module.named_parameters():
            weight.copy_(policy[name])
        self._renewed, self._hash = True, ""

    def released(self) -> Reference:
        return Released(self.fingerprint())

    @property
    def is_base(self) -> bool:
        return not self._renewed


class Released(Reference):
    """A reference that nobody asks any more: its weights are gone, and its identity stays.

    Args:
        fingerprint: of its weights.
    """

    renewable = False

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def attach(self, backbone: Backbone, policy: nn.Module) -> None:
        raise RuntimeError(self._gone)

    def network(self) -> AbstractContextManager[nn.Module]:
        raise RuntimeError(self._gone)

    def fingerprint(self) -> str:
        return self._fingerprint

    def renew(self) -> None:
        raise RuntimeError(self._gone)

    @property
    def is_base(self) -> bool:
        return False  # whoever wants the base has to load it

    _gone = "this reference was released: a bank says what it said"


class PolicyItself(Reference):
    """The policy, by something of it switched off: no second network in memory. It cannot be renewed."""

    renewable = False
    _policy: nn.Module
    _hash = ""

    def fingerprint(self) -> str:
        frozen = {
            name: weight for name, weight in self._policy.named_parameters() if not weight.requires_grad
        }
        self._hash = self._hash or fingerprint(frozen)
        return self._hash

    def renew(self) -> None:
        raise ValueError(
            f"{type(self).__name__}: this reference is the policy's own base and cannot take later weights; "
            "give reference: alignkit.policy.FrozenCopy"
        )

    @property
    def is_base(self) -> bool:
        return True


class AdaptersOff(PolicyItself):
    """The policy itself with its adapters switched off: no second network in memory. For LoRA policies."""

    needs = "lora"

    def attach(self, backbone: Backbone, policy: nn.Module) -> None:
        if not has_adapters(policy):
            raise ValueError(
                "AdaptersOff: the policy has no adapters to switch off; give the backbone a lora, "
                "or use FrozenCopy"
            )
        self._policy = policy

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        # switching off clears requires_grad, and a backward pass then gives no gradient and no error:
        # always back on
        self._policy.disable_adapters()  # type: ignore[operator]
        try:
            yield self._policy
        finally:
            self._policy.enable_adapters()  # type: ignore[operator]


class TokensOff(PolicyItself):
    """The policy itself, told nothing besides the prompt. For policies that train a conditioner alone."""

    needs = "conditioner"

    def attach(self, backbone: Backbone, policy: nn.Module) -> None:
        self._policy = policy

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        yield self._policy


def own_reference(*, lora: bool, conditioner: bool) -> type[Reference]:
    """The reference of a policy for which none is named."""
    if conditioner:
        return TokensOff
    return AdaptersOff if lora else FrozenCopy


class BoundDenoiser(Denoiser):
    """A network with a batch's conditions and its backbone's conventions."""

    def __init__(self, backbone: Backbone, network: nn.Module, encoded: Encoded) -> None:
        self.schedule, self.prediction_type = backbone.schedule, backbone.prediction_type
        self._backbone, self._network, self._encoded = backbone, network, encoded

    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        return self._backbone.predict(self._network, x_KBCHW, t_KB, self._encoded)

    def unconditional(self) -> "BoundDenoiser":
        return BoundDenoiser(self._backbone, self._network, without_prompts(self._backbone, self._encoded))


class ReferenceDenoiser(Denoiser):
    """The reference with a batch's conditions: no gradient, and switched on for the length of a call.

    Args:
        backbone: whose conventions.
        reference: whose network.
        encoded: the batch.
        compiled: what runs in a network's place.
    """

    def __init__(
        self, backbone: Backbone, reference: Reference, encoded: Encoded, compiled: Compiled | None = None
    ) -> None:
        self.schedule, self.prediction_type = backbone.schedule, backbone.prediction_type
        self._backbone, self._reference, self._encoded = backbone, reference, encoded
        self._compiled = compiled or Compiled(None)

    @torch.no_grad()
    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        with self._reference.network() as network:
            network = self._compiled("reference", network)
            return self._backbone.predict(network, x_KBCHW, t_KB, self._encoded)

    def fingerprint(self) -> str:
        """Whose weights it has: what is computed with them can be told apart, and kept."""
        return self._reference.fingerprint()

    def unconditional(self) -> "ReferenceDenoiser":
        encoded = without_prompts(self._backbone, self._encoded)
        return ReferenceDenoiser(self._backbone, self._reference, encoded, self._compiled)


def without_prompts(backbone: Backbone, encoded: Encoded) -> Encoded:
    """The same batch under the empty prompt, with nothing told besides."""
    prompts = ("",) * len(encoded.text_BLD)
    text_BLD, extras = backbone.conditions(prompts, encoded.text_BLD.device)
    extras = {**encoded.extras, **extras}
    return encoded._replace(text_BLD=text_BLD, extras=extras, prompts=prompts, tokens_BLD=None)


def has_adapters(network: nn.Module) -> bool:
    """Whether peft adapters were added to a network."""
    return any("lora_" in name for name, _ in network.named_parameters())


def fingerprint(parameters: Mapping[str, nn.Parameter]) -> str:
    """A hash of named weights, whatever their order. Of sharded ones, every process must ask."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        digest.update(name.encode())
        weight = gathered_whole(parameter.detach()).cpu().contiguous()
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()
