"""Compiled networks: the same losses and the same names, for policy and reference apart."""

import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from alignkit.averages import Average, trainable
from alignkit.compiling import Compile, Compiled
from alignkit.module import AlignModule
from alignkit.policy import AdaptersOff, LoRA, Reference
from alignkit.strategies import Sharded, check_strategy
from alignkit.testing import ToyBackbone, toy_batch
from alignkit.testing.pipelines import tiny_stable_diffusion
from alignkit.testing.toys import ToyNetwork
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise

# of a check of versions in diffusers
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
# tracing alone: what inductor makes of it takes minutes on a CPU
EAGER = Compile(backend="eager")


def module_of(backbone: Any, compile: Compile | None) -> AlignModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AlignModule(
            DiffusionDPO(beta=200.0), SharedNoise(), backbone, torch.optim.AdamW, compile=compile
        )
        module.configure_model()
    module._report = Mock()  # type: ignore[method-assign] # there is no Trainer to log to
    return module


def steps(module: AlignModule, count: int = 3) -> list[Tensor]:
    """Losses of the first steps, the last of them in evaluation mode without gradient."""
    assert module.policy is not None
    optimizer = torch.optim.AdamW([weight for _, weight in trainable(module.policy)], lr=1e-2)
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        loss = module.training_step(toy_batch(visit=step), step)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        losses.append(module.eval().training_step(toy_batch(visit=count), count))
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_stable_diffusion(tmp_path_factory.mktemp("pipeline")))


OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LoRA(rank=2)},
    "checkpointing": {"lora": LoRA(rank=2), "gradient_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_losses_weights_and_names_are_those_of_the_uncompiled_run(folder: str, name: str) -> None:
    """Bit for bit: the eager backend runs the same kernels in the same order."""
    plain, compiled = (
        module_of(StableDiffusion(folder, **OPTIONS[name]), compile) for compile in (None, EAGER)
    )
    ours, theirs = steps(plain), steps(compiled)
    assert torch.equal(torch.stack(ours), torch.stack(theirs))
    assert ours[0] == math.log(2)
    assert ours[2] != ours[0]
    one, other = plain.state_dict(), compiled.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(weight, other[key]) for key, weight in one.items())
    checkpoints: list[dict[str, Any]] = [{"state_dict": dict(state)} for state in (one, other)]
    for module, checkpoint in zip((plain, compiled), checkpoints, strict=True):
        module.on_save_checkpoint(checkpoint)
    assert checkpoints[0]["state_dict"].keys() == checkpoints[1]["state_dict"].keys()
    references = [module.reference for module in (plain, compiled)]
    assert len({reference.fingerprint() for reference in references if reference is not None}) == 1


def test_an_average_of_a_compiled_policy_has_the_names_of_the_policy() -> None:
    module = module_of(ToyBackbone(), EAGER)
    assert module.policy is not None
    average = Average(0.9)
    average.start(trainable(module.policy))
    steps(module)
    average.update(trainable(module.policy))
    assert average.weights.keys() == dict(ToyNetwork().named_parameters()).keys()


def test_policy_and_reference_are_compiled_apart_though_they_are_one_network(folder: str) -> None:
    """With adapters off the reference is the policy: one callable would be compiled anew at every turn."""
    module = module_of(StableDiffusion(folder, lora=LoRA(rank=2)), EAGER)
    reference: Reference | None = module.reference
    assert isinstance(reference, AdaptersOff)
    assert module.policy is not None
    with reference.network() as network:
        assert network is module.policy
        second = module.compiled("reference", network)
    first = module.compiled("policy", module.policy)
    assert first is not second
    assert first is module.compiled("policy", module.policy)


def test_without_settings_networks_are_run_as_they_are() -> None:
    network = ToyNetwork()
    assert Compiled(None)("policy", network) is network


def test_a_network_in_the_place_of_another_is_compiled_anew() -> None:
    compiled, first, second = Compiled(EAGER), ToyNetwork(0), ToyNetwork(1)
    x_NCHW, level_N, text_ND = torch.randn(1, 3, 4, 4), torch.rand(1), torch.randn(1, 4)
    for network in (first, second):
        found = compiled("reference", network)(x_NCHW, level_N, text_ND)
        assert torch.equal(found, network(x_NCHW, level_N, text_ND))
    assert not torch.equal(first(x_NCHW, level_N, text_ND), second(x_NCHW, level_N, text_ND))


@pytest.mark.slow
def test_what_a_compiled_network_generates_is_the_same(folder: str) -> None:
    backbone = StableDiffusion(folder)
    network = backbone.build_policy().eval()
    options: dict[str, Any] = {"seeds": [1, 2], "num_steps": 2, "guidance": 3.0}
    plain, compiled = (
        backbone.generate(Compiled(how)("generator", network), ["a pear", "an apple"], **options)
        for how in (None, EAGER)
    )
    assert torch.equal(plain, compiled)


def test_graphs_are_told_of_each_micro_step_and_generate_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy and reference run CUDA graphs, which are told once a micro-step; a generator runs none."""
    asked: list[dict[str, Any]] = []
    begun: list[int] = []

    def compiled(network: torch.nn.Module, **options: Any) -> torch.nn.Module:
        asked.append(options["options"])
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    module = module_of(ToyBackbone(), Compile(mode="reduce-overhead"))
    losses = steps(module)
    assert losses == steps(module_of(ToyBackbone(), None))
    assert len(begun) == len(losses)
    assert [options["triton.cudagraphs"] for options in asked] == [True, True]
    assert module.policy is not None
    module.compiled("generator", module.policy, graphs=False)
    assert "triton.cudagraphs" not in asked[-1]
    assert Compiled(Compile(mode="max-autotune")).has_graphs
    assert not Compiled(Compile(mode="max-autotune-no-cudagraphs")).has_graphs


def test_with_graphs_gradients_stay_where_they_are() -> None:
    """A weight keeps a gradient of its own; without graphs it has none between two steps."""
    network = ToyNetwork()
    optimizer = torch.optim.AdamW(network.parameters())
    weights = list(network.parameters())
    graphs, plain = Compiled(Compile(mode="reduce-overhead")), Compiled(EAGER)
    graphs.zero_grad(optimizer)
    own = [weight.grad for weight in weights]
    for _ in range(2):
        network(torch.randn(1, 3, 4, 4), torch.rand(1), torch.randn(1, 4)).sum().backward()
    assert all(weight.grad is grad for weight, grad in zip(weights, own, strict=True))
    assert any(bool(grad.any()) for grad in own if grad is not None)
    graphs.zero_grad(optimizer)
    assert all(weight.grad is grad for weight, grad in zip(weights, own, strict=True))
    assert not any(bool(grad.any()) for grad in own if grad is not None)
    plain.zero_grad(optimizer)
    assert all(weight.grad is None for weight in weights)


def test_graphs_are_not_sharded() -> None:
    with pytest.raises(
        ValueError, match=r"fsdp gathers weights anew .*; set model\.compile\.mode to default"
    ):
        check_strategy(Sharded(), graphs=True)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Compile: backend must be one of .*inductor.*, got 'indctor'"):
        Compile(backend="indctor")
    with pytest.raises(ValueError, match="mode 'max-autotune-no-cudagraphs' is inductor's, but backend is"):
        Compile(backend="eager", mode="max-autotune-no-cudagraphs")
