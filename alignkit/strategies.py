"""The Trainer's strategy that shards: FSDP."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from alignkit.sharding import placed

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


def check_strategy(strategy: Strategy, *, graphs: bool = False) -> None:
    """Refuses Lightning's own, whose networks nobody shards: each process would train alone.

    Args:
        strategy: which.
        graphs: whether CUDA graphs run the networks, whose weights must not move.

    Raises:
        ValueError: it is that one, or it shards what graphs run.
    """
    if graphs and isinstance(strategy, Sharded):
        raise ValueError(
            "trainer.strategy fsdp gathers weights anew at every call, which CUDA graphs cannot follow; set "
            "model.compile.mode to default or max-autotune-no-cudagraphs, or use ddp"
        )
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, Sharded):
        raise ValueError(
            f"trainer.strategy: with {type(strategy).__name__} each process would train alone; use fsdp"
        )


def _beside(values: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
    """What an optimizer keeps of a weight, placed as the weight is where it has its shape."""
    return {
        name: placed(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value
        for name, value in values.items()
    }
