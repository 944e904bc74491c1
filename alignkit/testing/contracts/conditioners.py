"""What a conditioner promises. Shape suffixes: K candidates; B prompts; L tokens; D width."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit.components import Backbone, Conditioner
from alignkit.noise import normal
from alignkit.testing.contracts.building import build
from alignkit.testing.toys import toy_batch
from alignkit.types import Batch, Encoded, Key

__all__ = [
    "test_conditioner_changes_nothing_with_zero_tokens_and_trains_its_own_alone",
    "test_conditioner_has_audiences_and_options",
    "test_conditioner_makes_the_same_tokens_for_the_same_key",
    "test_conditioner_reads_back_what_it_wrote",
]

COUNT = 4


def key_of(batch: Batch) -> Key:
    """The key of a batch."""
    return Key(0, batch.id_B, batch.visit_B)


def encoded(backbone: Backbone) -> Encoded:
    """A batch as the backbone sees it."""
    batch = toy_batch(COUNT)
    return backbone.encode(batch, key=key_of(batch))


def predict(backbone: Backbone, network: nn.Module, given: Encoded, tokens_BLD: Tensor | None) -> Tensor:
    """What a network predicts when it is told tokens."""
    t_KB = torch.arange(COUNT).repeat(2, 1)
    return backbone.predict(network, given.latent_KBCHW, t_KB, given._replace(tokens_BLD=tokens_BLD))


def test_conditioner_makes_the_same_tokens_for_the_same_key(
    conditioner: Conditioner, conditioned: Backbone
) -> None:
    """Whatever the global generators say: they are not its own."""
    conditioner.attach(conditioned.build_policy())
    batch = toy_batch(COUNT)
    tokens = []
    for seed in range(2):
        torch.manual_seed(seed)
        tokens.append(conditioner(batch, key=key_of(batch)))
    assert tokens[0].ndim == 3
    assert len(tokens[0]) == COUNT
    assert tokens[0].isfinite().all()
    assert_close(tokens[0], tokens[1], rtol=0, atol=0)


def test_conditioner_changes_nothing_with_zero_tokens_and_trains_its_own_alone(
    conditioner: Conditioner, conditioned: Backbone
) -> None:
    """So the base is the policy told nothing, bit for bit, before training and after it."""
    network, given, batch = conditioned.build_policy(), encoded(conditioned), toy_batch(COUNT)
    base = {id(parameter): name for name, parameter in network.named_parameters()}
    before = predict(conditioned, network, given, None).detach()
    conditioner.attach(network)
    trained = {id(p): name for name, p in network.named_parameters() if p.requires_grad}
    assert trained
    assert [base[i] for i in trained.keys() & base.keys()] == []
    tokens_BLD = conditioner(batch, key=key_of(batch))
    assert_close(predict(conditioned, network, given, None), before, rtol=0, atol=0)
    assert_close(predict(conditioned, network, given, torch.zeros_like(tokens_BLD)), before, rtol=0, atol=0)
    predict(conditioned, network, given, tokens_BLD).square().sum().backward()
    assert any(p.grad is not None and (p.grad != 0).any() for p in network.parameters())
    assert all(p.grad is None for p in network.parameters() if id(p) in base)


def test_conditioner_reads_back_what_it_wrote(
    conditioner: Conditioner, conditioned: Backbone, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Into a network of its own, by a conditioner of its own."""
    network, given, batch = conditioned.build_policy(), encoded(conditioned), toy_batch(COUNT)
    conditioner.attach(network)
    for i, parameter in enumerate(p for p in network.parameters() if p.requires_grad):
        noise = normal(Key(i, torch.tensor([0]), torch.tensor([0])), "trained", tuple(parameter.shape))[0]
        parameter.data.add_(0.1 * noise)
    conditioner.save(network, tmp_path / "run")
    other: Any = build(request.node.callspec.params["conditioner"], request.module, tmp_path / "other")
    loaded = conditioned.build_policy()
    other.attach(loaded)
    other.load(loaded, tmp_path / "run")
    tokens_BLD = conditioner(batch, key=key_of(batch))
    assert_close(
        predict(conditioned, loaded, given, tokens_BLD),
        predict(conditioned, network, given, tokens_BLD),
        rtol=1e-5,
        atol=1e-6,
    )


def test_conditioner_has_audiences_and_options(conditioner: Conditioner, conditioned: Backbone) -> None:
    """For whom held-out images are drawn, and how `alignkit generate` is told for whom to draw."""
    conditioner.attach(conditioned.build_policy())
    batch = toy_batch(COUNT)
    width = conditioner(batch, key=key_of(batch)).shape[2]
    found = conditioner.audiences()
    assert found
    for name, tokens_ULD in found.items():
        assert name
        assert tokens_ULD.ndim == 3
        assert tokens_ULD.shape[2] == width
    parser = argparse.ArgumentParser()
    group = parser.add_argument_group("for whom")
    conditioner.add_options(group)
    assert group._group_actions
    assert all(action.help for action in group._group_actions)
