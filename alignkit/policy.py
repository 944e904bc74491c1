"""From a backbone to the two networks of a step: the policy that is trained and the reference that is not."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from alignkit.components import Backbone, Denoiser, Reference
from alignkit.types import Encoded


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters in place of a full fine-tune (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

    Args:
        rank: inner width of the adapters.
        alpha: their scale times the rank; equal to the rank in diffusers' scripts.
        targets: ends of the names of the layers that get one.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA: rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"LoRA: alpha must be positive, got {self.alpha}")


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
    """A second network with the weights that the policy starts from."""

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
        return _fingerprint(dict(self._outside.module.named_parameters()))


class AdaptersOff(Reference):
    """The policy itself with its adapters switched off: no second network in memory. For LoRA policies."""

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

    def fingerprint(self) -> str:
        parameters = {name: p for name, p in self._policy.named_parameters() if "lora_" not in name}
        return _fingerprint(parameters)


class BoundDenoiser(Denoiser):
    """A network with a batch's conditions and its backbone's conventions."""

    def __init__(self, backbone: Backbone, network: nn.Module, encoded: Encoded) -> None:
        self.schedule, self.prediction_type = backbone.schedule, backbone.prediction_type
        self._backbone, self._network, self._encoded = backbone, network, encoded

    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        return self._backbone.predict(self._network, x_KBCHW, t_KB, self._encoded)


def has_adapters(network: nn.Module) -> bool:
    """Whether peft adapters were added to a network."""
    return any("lora_" in name for name, _ in network.named_parameters())


def _fingerprint(parameters: dict[str, nn.Parameter]) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
