"""Networks that are sharded over processes, here over a single one, and what stands in for them."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from alignkit import Batch
from alignkit.averages import Average, Averaged, exchange, trainable
from alignkit.data import AlignData
from alignkit.policy import FrozenCopy, fingerprint
from alignkit.sharding import check_optimizer, gathered_whole, is_sharded, placed, shard, whole
from alignkit.strategies import Sharded, check_strategy, strategy
from alignkit.testing import ToyBackbone, ToyPairs


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


class Block(nn.Module):
    """Two layers; the inner one is a block by itself where blocks go by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.outer(self.inner(x).tanh())
        return result


class Network(nn.Module):
    """Three blocks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
        self.blocks = nn.ModuleList([Block(), Block(), nn.Identity()])
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.last(x) * self.scale
        return result


class Named(Network):
    """Says what its blocks are, as diffusers' networks do."""

    _no_split_modules = ("Linear", "Block")


def units(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, FSDPModule)}


def test_only_its_own_name_means_this_strategy() -> None:
    assert isinstance(strategy("fsdp"), Sharded)
    assert isinstance(strategy("fsdp2"), Sharded)
    assert strategy("ddp") is strategy("auto") is strategy(Sharded()) is None


def test_strategy_that_shards_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ModelParallelStrategy each process would train alone; use fsdp"):
        check_strategy(ModelParallelStrategy())
    check_strategy(Sharded())


def test_optimizer_that_needs_whole_weights_is_refused() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(ValueError, match=r"Adafactor looks at all rows .* use another one, such as AdamW"):
        check_optimizer(torch.optim.Adafactor(weights))
    check_optimizer(torch.optim.AdamW(weights))


def test_blocks_are_the_elements_of_lists(mesh: DeviceMesh) -> None:
    network = Network()
    shard(network, mesh)
    assert units(network) == {"", "blocks.0", "blocks.1"}
    assert all(isinstance(weight, DTensor) for weight in network.parameters())


def test_blocks_are_what_a_network_names(mesh: DeviceMesh) -> None:
    network = Named()
    shard(network, mesh)
    inner = {f"blocks.{place}{layer}" for place in range(2) for layer in ("", ".inner", ".outer")}
    assert units(network) == {"", "first", "last", *inner}


def test_gradients_and_names_are_those_of_the_whole_network(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    plain, network, x = Network(), Network(), torch.randn(4, 3)
    network.load_state_dict(plain.state_dict())
    shard(network, mesh)
    plain(x).square().mean().backward()
    network(x).square().mean().backward()
    wanted = dict(plain.named_parameters())
    assert [name for name, _ in network.named_parameters()] == list(wanted)
    for name, weight in network.named_parameters():
        assert weight.grad is not None
        assert_close(gathered_whole(weight.grad), wanted[name].grad)


def test_weights_train_though_they_were_first_gathered_while_switched_off(mesh: DeviceMesh) -> None:
    """As adapters are, when a sampler asks the reference before anyone asks the policy."""
    network, x = Network(), torch.randn(4, 3)
    shard(network, mesh)
    network.first.requires_grad_(False)
    with torch.no_grad():
        network(x)
    network.first.requires_grad_(True)
    network(x).sum().backward()
    assert network.first.weight.grad is not None


def test_whole_one_runs_and_is_saved_as_the_sharded_one(mesh: DeviceMesh) -> None:
    network, x = Network().eval(), torch.randn(4, 3)
    network.get_buffer("scale").fill_(3.0)
    expected = network(x).detach()
    assert whole(network, Network) is network
    shard(network, mesh)
    twin = whole(network, Network)
    assert not is_sharded(twin)
    assert not twin.training
    assert torch.equal(twin(x), expected)
    assert whole(network, Network, wanted=False) is network
    own = dict(twin.named_parameters())
    assert not any(isinstance(weight, DTensor) for weight in own.values())
    assert fingerprint(own) == fingerprint(dict(network.named_parameters()))


def test_tensor_is_placed_as_another_one(mesh: DeviceMesh) -> None:
    network, value = Network(), torch.randn(3, 3)
    assert placed(value, network.first.weight) is value
    shard(network, mesh)
    found = placed(value, network.first.weight)
    assert isinstance(found, DTensor)
    assert found.placements == network.first.weight.placements  # type: ignore[union-attr]
    assert torch.equal(found.full_tensor(), value)
    found.to_local().zero_()
    assert value.all()  # it is a copy
    assert placed(5, network.first.weight) == 5


def test_average_of_one_process_goes_on_in_a_sharded_run(mesh: DeviceMesh) -> None:
    """2/11 of zeros, by which the first update was followed, and 9/11 of ones."""
    average, network = Average(0.5), Network()
    for value in (0.0, 1.0):
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(value)
        if value == 0.0:
            average.start(trainable(network))
            average.update(trainable(network))
            shard(network, mesh)
    average.update(trainable(network))
    for weight in average.weights.values():
        assert isinstance(weight, DTensor)
        assert_close(weight.full_tensor(), torch.full(weight.shape, 9 / 11))


def test_network_under_an_average_is_that_of_one_process(mesh: DeviceMesh) -> None:
    """Asked between forward and backward, as a weighting asks it."""
    torch.manual_seed(0)
    results = []
    plain, x = Network(), torch.randn(4, 3)
    for sharded in (False, True):
        network, average = Network(), Average(0.5)
        network.load_state_dict(plain.state_dict())
        if sharded:
            shard(network, mesh)
        average.start((name, weight.detach() * 2) for name, weight in trainable(network))
        loss = network(x).square().mean()
        with torch.no_grad():
            averaged = Averaged(network, average)(x)
        loss.backward()
        grads = [gathered_whole(weight.grad) for weight in network.parameters() if weight.grad is not None]
        weights = [gathered_whole(weight.detach()) for weight in network.parameters()]
        results.append((averaged, grads, weights))
    assert len(results[0][1]) == len(list(plain.parameters()))
    assert_close(results[1], results[0])


def test_exchange_gives_both_what_the_other_had(mesh: DeviceMesh) -> None:
    network = Network()
    shard(network, mesh)
    weights = {"last.bias": torch.tensor([5.0, 6.0])}
    own = gathered_whole(network.last.bias.detach()).clone()
    exchange(network, weights)
    assert torch.equal(gathered_whole(network.last.bias.detach()), torch.tensor([5.0, 6.0]))
    assert torch.equal(gathered_whole(weights["last.bias"]), own)


def test_sharded_copy_takes_the_weights_of_a_sharded_policy(mesh: DeviceMesh) -> None:
    backbone, reference = ToyBackbone(), FrozenCopy()
    policy = backbone.build_policy()
    reference.attach(backbone, policy)
    first = reference.fingerprint()
    with reference.network() as network:
        shard(network, mesh)
    shard(policy, mesh)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(1)
    reference.renew()
    assert reference.fingerprint() == fingerprint(dict(policy.named_parameters())) != first


@pytest.mark.parametrize("count", [6, 7, 8, 9, 13])
def test_processes_validate_equally_often_and_each_pair_counts_once(count: int) -> None:
    """Three processes with batches of 2; a sharded network runs in all of them or in none."""
    lengths, seen = set(), []
    for rank in range(3):
        data = AlignData(ToyPairs(30), ToyPairs(count), batch_size=2, resolution=16, validation_reads="pair")
        data.trainer = Mock(strategy=Sharded(), global_rank=rank, world_size=3)
        loader = data.val_dataloader()
        assert not isinstance(loader, list)
        batches: list[Batch] = list(loader)
        lengths.add(len(batches))
        seen += [row for batch in batches for row in batch.id_B.tolist()]
    assert len(lengths) == 1
    assert len(seen) == len(set(seen)) == sum(label != 0.5 for label in ToyPairs(count).labels())
