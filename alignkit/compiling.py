"""`torch.compile` for policy and reference, each by a callable of its own, and for who generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

if TYPE_CHECKING:  # Lightning imports libraries of models
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch.optim import Optimizer

Mode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune"]
# of the modes with CUDA graphs: what is left of them
WITHOUT_GRAPHS: dict[str, Mode] = {
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}


@dataclass(frozen=True)
class Compile:
    """How policy and reference are compiled: for training and validation steps, and for self-play.

    The weights stay where they are, under their names: checkpoints, averages and adapters know nothing of it.
    Inductor rounds as the uncompiled networks do: without that, what a policy computes with gradient and a
    reference without came out apart by 0.014 in bfloat16, with it by exactly 0 (a tiny UNet on a CPU). The
    first batch is held to a margin of exactly 0 all the same.

    Args:
        backend: one of ``torch._dynamo.list_backends(None)``, such as "inductor", or "eager", which compiles
            nothing and shows whether a network can be traced.
        mode: what inductor tries. "reduce-overhead" and "max-autotune" run CUDA graphs, which spare the host
            the launching of kernels, and pay off in small batches of fixed sizes; not yet run on a GPU.
            Networks that generate are compiled without them.
        dynamic: compiles for all sizes at once; without it, anew for a second size and then for all.
    """

    backend: str = "inductor"
    mode: Mode = "default"
    dynamic: bool | None = None

    def __post_init__(self) -> None:
        known = torch._dynamo.list_backends(None)
        if self.backend not in known:
            raise ValueError(
                f"Compile: backend must be one of {', '.join(sorted(known))}, got {self.backend!r}"
            )
        if self.mode != "default" and self.backend != "inductor":
            raise ValueError(
                f"Compile: mode {self.mode!r} is inductor's, but backend is {self.backend!r}; leave one out"
            )


class Compiled:
    """Compiles each network that it is asked for once, and keeps it outside of any module tree.

    Args:
        how: how; None leaves networks as they are.
    """

    def __init__(self, how: Compile | None) -> None:
        self.how = how
        self._kept: dict[str, tuple[nn.Module, nn.Module]] = {}

    @property
    def has_graphs(self) -> bool:
        """Whether CUDA graphs are run."""
        return self.how is not None and self.how.mode in WITHOUT_GRAPHS

    def begin(self) -> None:
        """Says that a micro-step begins: graphs may write over what they computed in the one before."""
        if self.has_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def zero_grad(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Clears gradients; with CUDA graphs in place, where there are none, too.

        A weight without a gradient would take that of a graph as its own, which the graph writes over in the
        next micro-step: accumulated gradients were wrong without a word, or an error
        (https://github.com/pytorch/pytorch/issues/96693, https://github.com/pytorch/pytorch/issues/169545).
        """
        optimizer.zero_grad(set_to_none=not self.has_graphs)
        if self.has_graphs:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    if weight.grad is None:
                        weight.grad = torch.zeros_like(weight)

    def __call__(self, role: str, network: nn.Module, *, graphs: bool = True) -> nn.Module:
        """The network, or what runs in its place.

        Args:
            role: as what it is asked; a network with two roles is compiled for each.
            network: which.
            graphs: whether CUDA graphs may run it: only where ``begin`` is called now and then, and nothing
                that was computed before is needed after it.
        """
        if self.how is None:
            return network
        source, kept = self._kept.get(role, (None, None))
        if kept is None or source is not network:
            options = None
            if self.how.backend == "inductor":
                mode = self.how.mode if graphs else WITHOUT_GRAPHS.get(self.how.mode, self.how.mode)
                options = torch._inductor.list_mode_options(mode)
                options = {**options, "emulate_precision_casts": True}
            run = torch.compile(network, backend=self.how.backend, dynamic=self.how.dynamic, options=options)
            kept = cast(nn.Module, run)
            self._kept[role] = network, kept
        return kept
