"""What a sampler promises. Shape suffixes: K candidates of a prompt; B prompts; C H W."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit.components import Sampler
from alignkit.policy import BoundDenoiser, FrozenCopy, ReferenceDenoiser
from alignkit.testing.toys import ToyBackbone, toy_batch
from alignkit.types import Batch, Key, Sample

__all__ = [
    "test_sampler_asks_about_every_candidate_without_gradient",
    "test_sampler_draws_a_record_the_same_wherever_it_stands",
    "test_sampler_draws_the_same_for_the_same_key",
    "test_sampler_that_is_fixed_asks_no_network",
]

COUNT = 4


def draw(sampler: Sampler, batch: Batch, seed: int = 0) -> tuple[Sample, Tensor]:
    """Draws a sample with a toy policy that has left its reference; also what the policy predicts there."""
    backbone = ToyBackbone()
    policy, reference = backbone.build_policy(), FrozenCopy()
    reference.attach(backbone, policy)
    with torch.no_grad():
        policy.told.bias.add_(0.1)
    key = Key(seed, batch.id_B, batch.visit_B)
    encoded = backbone.encode(batch, key=key)
    asked = BoundDenoiser(backbone, policy, encoded)
    before = copy.deepcopy(policy.state_dict())
    try:
        sample = sampler(batch, encoded, asked, ReferenceDenoiser(backbone, reference, encoded), key=key)
    except ValueError as error:
        if not sampler.callbacks():
            raise
        pytest.skip(f"needs a run: {error}")
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert policy.training
    return sample, asked(sample.x_KBCHW, sample.t_KB)


def candidates(sampler: Sampler) -> list[int]:
    """How many images a sampler may be given of each prompt."""
    return {"pair": [2], "winner": [1], "either": [1], None: [1, 2]}[sampler.reads]


def test_sampler_asks_about_every_candidate_without_gradient(sampler: Sampler) -> None:
    """Every log-likelihood is a finite float32, of which the policy's prediction knows the gradient."""
    assert sampler.reads in ("pair", "winner", "either", None)
    for count in candidates(sampler):
        sample, prediction_KBCHW = draw(sampler, toy_batch(COUNT, candidates=count))
        assert sample.x_KBCHW.ndim == 5
        assert sample.t_KB.shape == sample.x_KBCHW.shape[:2]
        assert len(sample.t_KB) >= count
        assert sample.t_KB.shape[1] == COUNT
        assert not sample.x_KBCHW.requires_grad
        assert not sample.t_KB.is_floating_point()
        steps = len(ToyBackbone().schedule.alpha_T)
        assert 0 <= sample.t_KB.min() <= sample.t_KB.max() < steps
        logp_KB = sample.logp(prediction_KBCHW)
        assert (logp_KB.shape, logp_KB.dtype) == (sample.t_KB.shape, torch.float32)
        assert logp_KB.isfinite().all()
        assert logp_KB.requires_grad
        assert sample.logp(prediction_KBCHW.bfloat16()).dtype == torch.float32


def test_sampler_draws_the_same_for_the_same_key(sampler: Sampler) -> None:
    """Whatever the global generators say: they are not its own."""
    for count in candidates(sampler):
        batch = toy_batch(COUNT, candidates=count)
        torch.manual_seed(1)
        first, prediction_KBCHW = draw(sampler, batch)
        torch.manual_seed(2)
        second, _ = draw(sampler, batch)
        assert torch.equal(first.t_KB, second.t_KB)
        assert torch.equal(first.x_KBCHW, second.x_KBCHW)
        assert torch.equal(first.logp(prediction_KBCHW), second.logp(prediction_KBCHW))


def test_sampler_that_is_fixed_asks_no_network(sampler: Sampler) -> None:
    """Else what a reference said of its points could not be kept."""
    if not sampler.fixed:
        pytest.skip("its points may follow from networks")
    assert not sampler.asks_reference
    assert not sampler.renews
    batch, backbone = toy_batch(COUNT), ToyBackbone()
    key = Key(0, batch.id_B, batch.visit_B)
    encoded = backbone.encode(batch, key=key)
    silent = BoundDenoiser(backbone, nn.Identity(), encoded)  # which no backbone can ask
    first, second = sampler(batch, encoded, silent, None, key=key), draw(sampler, batch)[0]
    assert torch.equal(first.x_KBCHW, second.x_KBCHW)
    assert torch.equal(first.t_KB, second.t_KB)


def test_sampler_draws_a_record_the_same_wherever_it_stands(sampler: Sampler) -> None:
    """So that a run does not depend on how batches are split over steps and processes."""
    for count in candidates(sampler):
        batch = toy_batch(COUNT, candidates=count)
        sample, prediction_KBCHW = draw(sampler, batch)
        single, single_prediction_KBCHW = draw(sampler, batch.at([1]))
        assert torch.equal(single.t_KB, sample.t_KB[:, 1:2])
        assert_close(single.x_KBCHW, sample.x_KBCHW[:, 1:2], rtol=1e-4, atol=1e-5)
        assert_close(
            single.logp(single_prediction_KBCHW), sample.logp(prediction_KBCHW)[:, 1:2], rtol=1e-3, atol=1e-5
        )
