"""`torch.compile` for policy and reference, each by a callable of its own, and for who generates."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn


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
        mode: what inductor tries; those with CUDA graphs are left out, which write every prediction over the
            one before.
        dynamic: compiles for all sizes at once; without it, anew for a second size and then for all.
    """

    backend: str = "inductor"
    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
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

    def __call__(self, role: str, network: nn.Module) -> nn.Module:
        """The network, or what runs in its place.

        Args:
            role: as what it is asked; a network with two roles is compiled for each.
            network: which.
        """
        if self.how is None:
            return network
        source, kept = self._kept.get(role, (None, None))
        if kept is None or source is not network:
            options = None
            if self.how.backend == "inductor":
                options = torch._inductor.list_mode_options(self.how.mode)
                options = {**options, "emulate_precision_casts": True}
            run = torch.compile(network, backend=self.how.backend, dynamic=self.how.dynamic, options=options)
            kept = cast(nn.Module, run)
            self._kept[role] = network, kept
        return kept
