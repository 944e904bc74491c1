"""FSDP: each process holds a share of every weight, and gathers those of a block when it runs it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

# what the command line calls it
NAMES = ("fsdp", "fsdp2")


class Sharded(ModelParallelStrategy):
    """Shards over all processes; ``AlignModule.configure_model`` asks for its mesh and shards the networks.

    Weights, averages and optimizer state are DTensors in what it saves, and stay so: no process ever holds
    them whole for that. A checkpoint comes back whether it was saved by as many processes, by others, or
    whole by one.
    """

    def __init__(self) -> None:
        # Lightning's own guess is one group of tensor parallelism, in which each process trains alone
        super().__init__(tensor_parallel_size=1)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The networks are sharded before the strategy is set up: they can be loaded first, as elsewhere."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        shares = self.device_mesh["data_parallel"].size()
        assert shares == self.world_size, f"{shares} shares for {self.world_size} processes"

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Saves from every process, each its share."""
        self.checkpoint_io.save_checkpoint(checkpoint, self.broadcast(filepath), storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path, shares = self.broadcast(checkpoint_path), self.device_mesh["data_parallel"]
        state: dict[str, Any] = self.checkpoint_io.load_checkpoint(path, map_location=shares)
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        weights = {k: placed(v, own[k]) if k in own else v for k, v in checkpoint["state_dict"].items()}
        module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            of = dict(zip(numbers, weights, strict=True))
            held = {number: _beside(values, of[number]) for number, values in state["state"].items()}
            optimizer.load_state_dict({**state, "state": held})


def strategy(named: Any) -> Strategy | None:
    """The strategy that a config names, where it is ours; None for any other."""
    return Sharded() if isinstance(named, str) and named in NAMES else None


def check_strategy(strategy: Strategy) -> None:
    """Refuses Lightning's own, whose networks nobody shards: each process would train alone.

    Raises:
        ValueError: it is that one.
    """
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, Sharded):
        raise ValueError(
            f"trainer.strategy: with {type(strategy).__name__} each process would train alone; use fsdp"
        )


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


def _beside(values: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
    """What an optimizer keeps of a weight, placed as the weight is where it has its shape."""
    return {
        name: placed(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value
        for name, value in values.items()
    }
