"""What rewards and features promise. Shape suffixes: N images; C H W."""

import json

import torch
from torch import Tensor
from torch.testing import assert_close

from alignkit.components import Features, Measure, Reward
from alignkit.noise import uniform
from alignkit.types import Key

__all__ = [
    "test_features_are_of_length_one_and_of_an_image_alone",
    "test_features_say_where_they_come_from",
    "test_reward_gives_one_finite_score_per_image_whatever_stands_beside_it",
    "test_reward_says_where_it_comes_from",
    "test_reward_sends_gradient_to_the_image_if_it_says_so",
]

COUNT, SIDE = 4, 32
PROMPTS = ["a red apple", "a plum", "a green pear", "a red apple"]


def pictures() -> Tensor:
    """Random pictures in [0, 1] whose parts differ in brightness."""
    id_N = torch.arange(COUNT)
    pixel_NM = uniform(Key(0, id_N, id_N * 0), "pictures", 3 * SIDE * SIDE).float()
    return pixel_NM.view(COUNT, 3, SIDE, SIDE) * torch.linspace(0.3, 1.0, COUNT)[:, None, None, None]


def test_reward_gives_one_finite_score_per_image_whatever_stands_beside_it(reward: Reward) -> None:
    """The score is of an image and its prompt, not of a batch."""
    with torch.no_grad():
        image_NCHW = pictures()
        score_N = reward(image_NCHW, PROMPTS)
        assert score_N.shape == (COUNT,)
        assert score_N.is_floating_point()
        assert score_N.isfinite().all()
        assert len(set(score_N.tolist())) > 1
        order = torch.tensor([2, 0, 3, 1])
        shuffled_N = reward(image_NCHW[order], [PROMPTS[i] for i in order.tolist()])
        assert_close(shuffled_N, score_N[order], rtol=1e-4, atol=1e-4)
        assert_close(reward(image_NCHW[1:2], PROMPTS[1:2]), score_N[1:2], rtol=1e-4, atol=1e-4)
        assert_close(image_NCHW, pictures(), rtol=0, atol=0)


def test_reward_sends_gradient_to_the_image_if_it_says_so(reward: Reward) -> None:
    """To every image, where ``differentiable`` is true; else none pretends to."""
    assert isinstance(reward.differentiable, bool)
    image_NCHW = pictures().requires_grad_()
    score_N = reward(image_NCHW, PROMPTS)
    if not reward.differentiable:
        assert not score_N.requires_grad
        return
    (slope_NCHW,) = torch.autograd.grad(score_N.sum(), image_NCHW)
    assert slope_NCHW.isfinite().all()
    assert (slope_NCHW != 0).any(dim=(1, 2, 3)).all()


def test_features_are_of_length_one_and_of_an_image_alone(features: Features) -> None:
    """Different images differ, whatever stands beside them."""
    with torch.no_grad():
        feature_ND = features(pictures())
        assert feature_ND.shape[:-1] == (COUNT,)
        assert_close(feature_ND.norm(dim=1), torch.ones(COUNT), rtol=1e-4, atol=1e-4)
        distance_NN = torch.cdist(feature_ND, feature_ND)
        assert (distance_NN[~torch.eye(COUNT, dtype=torch.bool)] > 1e-4).all()
        assert_close(features(pictures().flip(0)), feature_ND.flip(0), rtol=1e-4, atol=1e-4)
        assert_close(features(pictures()[1:2]), feature_ND[1:2], rtol=1e-4, atol=1e-4)


def test_reward_says_where_it_comes_from(reward: Reward) -> None:
    """For the record of an evaluation: texts by name, its class among them."""
    _says_where_it_comes_from(reward)


def test_features_say_where_they_come_from(features: Features) -> None:
    """As a reward does."""
    _says_where_it_comes_from(features)


def _says_where_it_comes_from(measure: Measure) -> None:
    told = measure.provenance()
    assert told["class"] == f"{type(measure).__module__}.{type(measure).__name__}"
    assert all(isinstance(text, str) for item in told.items() for text in item)
    assert json.loads(json.dumps(told)) == told
