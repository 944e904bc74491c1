"""Networks of which each process holds a share of every weight, and gathers those of a block when it runs it.

Without Lightning, whose strategies take seconds to import: ``alignkit.strategies`` has the Trainer's.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuses an optimizer that takes a weight's rows and columns together.

    Raises:
        ValueError: it does.
    """
    if isinstance(optimizer, torch.optim.Adafactor):
        raise ValueError(
            "optimizer: torch's Adafactor looks at all rows of a weight, but a process has some only under "
            "trainer.strategy fsdp; use another one, such as AdamW, or another strategy"
        )


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a network in place, each of its blocks as one.

    Args:
        network: its blocks are what it names in ``_no_split_modules``, as those of diffusers and transformers
            do, or else the elements of its lists.
        mesh: the processes.
    """
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Whether ``shard`` was called on it."""
    return isinstance(network, FSDPModule)


def placed(value: Any, like: Any) -> Any:
    """A tensor where another one is: on its device, and sharded as it is; any other value as it stands."""
    if not isinstance(value, Tensor) or not isinstance(like, Tensor):
        return value
    value = value.to(like.device)
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    # every process has it all, and keeps a copy of its own share
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()


def gathered_whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(network: nn.Module, build: Callable[[], nn.Module], *, wanted: bool = True) -> nn.Module:
    """A network that runs and is saved without the other processes. Every process must ask.

    Args:
        network: which; where it is not sharded, it is what is returned.
        build: makes another one that has the same weights by name, whatever their values.
        wanted: whether this process needs it; one that does not gets the sharded one back.
    """
    if not is_sharded(network):
        return network
    twin = build() if wanted else None
    own = {} if twin is None else dict(twin.named_parameters())
    for name, weight in network.named_parameters():
        gathered = gathered_whole(weight.detach())
        if twin is not None:
            own[name].copy_(gathered)
    if twin is None:
        return network
    for name, buffer in network.named_buffers():
        twin.get_buffer(name).copy_(buffer)
    device = next(network.parameters()).device
    return twin.to(device).train(network.training)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The inner ones first."""
    named = frozenset(getattr(network, "_no_split_modules", None) or ())
    listed = {id(item) for part in network.modules() if isinstance(part, nn.ModuleList) for item in part}
    for module in reversed(list(network.modules())):
        found = type(module).__name__ in named if named else id(module) in listed
        if found and module is not network and any(True for _ in module.parameters()):
            yield module
