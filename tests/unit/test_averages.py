"""Averages of trainable weights, and networks that run with them."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alignkit.averages import Average, Averaged, Snapshots, trainable


@pytest.fixture
def network() -> nn.Module:
    """A weight of 0 that is trained, and a bias that is not."""
    linear = nn.Linear(3, 2)
    nn.init.zeros_(linear.weight)
    linear.bias.requires_grad_(False)
    return linear


def test_only_trained_weights_are_kept(network: nn.Module) -> None:
    average = Average(0.9)
    average.start(trainable(network))
    assert set(average.weights) == {"weight"}


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_decay_is_that_of_diffusers(decay: float) -> None:
    """Against diffusers' own ``EMAModel`` over 30 updates: the same ramp, the same values."""
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    theirs, ours = EMAModel([weight], decay=decay), Average(decay)
    ours.start([("w", weight)])
    for _ in range(30):
        with torch.no_grad():
            weight.copy_(torch.randn(4))
        theirs.step([weight])
        ours.update([("w", weight)])
        assert_close(ours.weights["w"], theirs.shadow_params[0], rtol=1e-12, atol=1e-12)


def test_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Average: decay must be between 0 and 1, got 1\.0"):
        Average(1.0)


def test_a_forward_with_averaged_weights_leaves_a_pending_backward_pass_alone(network: nn.Module) -> None:
    """Swapping weights in place between forward and backward would raise, or give the wrong gradient."""
    average = Average(0.5)
    average.start([("weight", torch.ones(2, 3))])
    x = torch.randn(5, 3)
    live = network(x).square().sum()
    with torch.no_grad():
        averaged = Averaged(network, average)(x)
    assert_close(averaged, x @ torch.ones(3, 2) + network.bias)
    assert torch.equal(network.weight, torch.zeros(2, 3))  # type: ignore[arg-type]
    live.backward()
    bias = network.bias.detach().expand(5, 2)  # type: ignore[operator]
    assert_close(network.weight.grad, 2 * bias.T @ x)  # type: ignore[arg-type]


def test_snapshots_follow_optimizer_steps_not_batches_and_survive_a_checkpoint(network: nn.Module) -> None:
    """Two updates to 1 and 2 at decay 0.5: the first copies, the second keeps min(0.5, 2/11) = 2/11."""
    snapshots, module = Snapshots((0.5,)), Mock(policy=network, skipped=None)
    snapshots.networks(network)
    snapshots.on_train_start(Mock(global_step=0), module)
    for step in (1, 2):
        nn.init.constant_(network.weight, step)  # type: ignore[arg-type]
        for _ in range(2):
            snapshots.on_train_batch_end(Mock(global_step=step), module, None, None, 0)
    expected = torch.full((2, 3), 1 * 2 / 11 + 2 * 9 / 11)
    assert_close(snapshots.averages[0].weights["weight"], expected)
    resumed = Snapshots((0.5,))
    resumed.load_state_dict(snapshots.state_dict())
    (averaged,) = resumed.networks(network)
    x = torch.randn(4, 3)
    assert_close(averaged(x), x @ expected.T + network.bias)
    assert list(averaged.parameters()) == []
