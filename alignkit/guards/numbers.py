"""What is computed of whole networks, also where each process holds a part of them. Suffix: N weights."""

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from alignkit.distributed import gathered
from alignkit.guards.updates import scales
from alignkit.module import AlignModule


def total_norm(trainer: pl.Trainer, module: AlignModule, optimizer: Optimizer) -> Tensor:
    """L2 norm of the whole gradient, which is left to clipping, too; 0 where gradients are scaled."""
    if scales(trainer):
        return torch.zeros_like(module.seen["trained"])
    weights = trainer.precision_plugin.main_params(optimizer)
    grads = [weight.grad for weight in weights if weight.grad is not None]
    module.grad_norm = norm = torch.nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def not_finite(weights: Sequence[tuple[str, Tensor]]) -> list[str]:
    """Names of weights that are not finite on any process; every process must call it."""
    parts = [weight.to_local() if isinstance(weight, DTensor) else weight for _, weight in weights]
    fine_N = torch.stack([part.isfinite().all() for part in parts])
    fine_PN = gathered(fine_N[None])
    return [name for (name, _), fine in zip(weights, fine_PN.all(0).tolist(), strict=True) if not fine]
