"""Values that travel through a step. Suffixes: K candidates of a prompt, best first; B prompts; C H W."""

import pytest
import torch
from torch.testing import assert_close

from alignkit.types import Noised, mean_logs, required


def test_logp_is_minus_the_mean_squared_error():
    """Errors of 1, 2, 3 and 4 on 1 x 2 x 2 values: -(1 + 4 + 9 + 16) / 4 = -7.5; the other has none."""
    target_KBCHW = torch.zeros(2, 1, 1, 2, 2)
    prediction_KBCHW = torch.tensor([[[1.0, -2.0], [3.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]]).view(
        2, 1, 1, 2, 2
    )
    sample = Noised(target_KBCHW, torch.zeros(2, 1), target_KBCHW)
    assert_close(sample.logp(prediction_KBCHW), torch.tensor([[-7.5], [0.0]]))


def test_logp_does_not_depend_on_the_size():
    """A mean, not a sum: beta keeps its meaning from one resolution to another."""
    for size in (2, 8):
        target_KBCHW = torch.zeros(2, 3, 4, size, size)
        logp_KB = Noised(target_KBCHW, torch.zeros(2, 3), target_KBCHW).logp(target_KBCHW + 0.5)
        assert_close(logp_KB, torch.full((2, 3), -0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logp_of_half_precision_is_computed_in_float32(dtype: torch.dtype):
    """It equals the error of the rounded inputs in float64; computed in their own precision it would not."""
    generator = torch.Generator().manual_seed(0)
    target, prediction = torch.randn(2, 2, 5, 4, 16, 16, generator=generator).to(dtype)
    logp_KB = Noised(target, torch.zeros(2, 5), target).logp(prediction)
    exact_KB = -(prediction.double() - target.double()).square().mean((-3, -2, -1))
    coarse_KB = -(prediction - target).square().mean((-3, -2, -1))
    assert logp_KB.dtype == torch.float32
    assert_close(logp_KB.double(), exact_KB, rtol=1e-6, atol=0)
    assert (coarse_KB.double() - exact_KB).abs().max() > 1e-4


def test_logp_carries_the_gradient():
    """d/dprediction of -(p - y)^2 / 4 = -(p - y) / 2 on four values."""
    prediction_KBCHW = torch.full((1, 1, 1, 2, 2), 3.0, requires_grad=True)
    target_KBCHW = torch.ones(1, 1, 1, 2, 2)
    Noised(target_KBCHW, torch.zeros(1, 1), target_KBCHW).logp(prediction_KBCHW).sum().backward()
    assert_close(prediction_KBCHW.grad, torch.full((1, 1, 1, 2, 2), -1.0))


class Forgetful:
    """Stands for an objective whose ``uses`` lacks a field."""


def test_required_gives_the_field_or_says_what_to_add():
    logp_KB = torch.zeros(2, 3)
    assert required(logp_KB, Forgetful(), "logp") is logp_KB
    message = "Forgetful reads ref_logp, which was not computed: add 'ref_logp' to Forgetful.uses"
    with pytest.raises(ValueError, match=message):
        required(None, Forgetful(), "ref_logp")


def test_mean_logs_are_detached_scalars():
    logs = mean_logs(
        {"a": torch.tensor([1.0, 3.0], requires_grad=True), "b": torch.tensor(2, dtype=torch.int64)}
    )
    assert {name: value.item() for name, value in logs.items()} == {"a": 2.0, "b": 2.0}
    assert not any(value.requires_grad for value in logs.values())
