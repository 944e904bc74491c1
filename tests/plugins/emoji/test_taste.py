"""Features by hand, and how the two tastes stand to each other and to the shipped pictures."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from alignkit_emoji.build.pairs import measured_features, measured_scale
from alignkit_emoji.pictures import load_pictures
from alignkit_emoji.taste import FEATURES, MAJORITY, MINORITY, Taste, features, picture_scale


@pytest.fixture(scope="module", name="image_NCHW")
def real_images() -> Tensor:
    return load_pictures().image_NCHW.float() / 255


def flat(*rgb: float) -> Tensor:
    return tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 32, 32)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# the root's epsilon makes a colourfulness of 0.3 * c smaller by less than 0.3e-4
ROUNDED = {"atol": 1e-4, "rtol": 1e-5}


def test_flat_white_has_brightness_and_nothing_else():
    expected = {"dark": sigmoid(30 * (0.25 - 1)), "bright": 1}
    assert_close(features(flat(1, 1, 1)), tensor([[expected.get(name, 0) for name in FEATURES]]), **ROUNDED)


def test_flat_red():
    """Red-green is 1, yellow-blue is 1/2, neither varies: 0.3 * sqrt(1.25). Luma is red's 0.299."""
    expected = {"colourful": 0.3 * math.sqrt(1.25), "dark": sigmoid(30 * (0.25 - 0.299)), "bright": 0.299}
    expected |= {"saturation": 1, "warm": 1}
    assert_close(features(flat(1, 0, 0)), tensor([[expected.get(name, 0) for name in FEATURES]]), **ROUNDED)


def test_half_black_half_white_has_one_edge_a_row():
    """One step of 1 among 31 neighbours across, none down; half of the pixels are dark; no colour."""
    image_NCHW = flat(1, 1, 1).clone()
    image_NCHW[..., :16] = 0
    found = dict(zip(FEATURES, features(image_NCHW)[0].tolist(), strict=True))
    assert found["edges"] == pytest.approx(1 / 31)
    assert found["dark"] == pytest.approx(sigmoid(7.5) / 2, abs=1e-6)
    assert found["colourful"] == pytest.approx(0, abs=1e-6)


def test_half_red_half_cyan_varies_in_both_opponent_colours():
    """Red-green is 1 and -1: deviation 1, mean 0. Yellow-blue is 1/2 and -1/2: deviation 1/2, mean 0."""
    image_NCHW = flat(1, 0, 0).clone()
    image_NCHW[..., :16] = tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    found = dict(zip(FEATURES, features(image_NCHW)[0].tolist(), strict=True))
    assert found["colourful"] == pytest.approx(math.sqrt(1.25), abs=2e-4)
    assert found["warm"] == pytest.approx(0)


@pytest.mark.parametrize("taste", [MAJORITY, MINORITY], ids=lambda taste: taste.name)
def test_utility_counts_in_deviations_of_the_shipped_pictures(taste, image_NCHW):
    """The constants are rounded to six digits, which moves mean and deviation by less than 1e-4."""
    utility_N = taste.utility(image_NCHW)
    assert utility_N.shape == (1144,)
    assert_close(utility_N.mean(), tensor(0.0), atol=1e-4, rtol=0)
    assert_close(utility_N.std(correction=0), tensor(1.0), atol=1e-4, rtol=0)


def test_any_taste_is_standardised(image_NCHW):
    utility_N = Taste("somebody", 0.1, -0.2, 0.3, 0.4, -0.5, 0.6).utility(image_NCHW)
    assert_close(utility_N.mean(), tensor(0.0), atol=1e-4, rtol=0)
    assert_close(utility_N.std(correction=0), tensor(1.0), atol=1e-4, rtol=0)


def test_the_tastes_are_opposed(image_NCHW):
    utility_2N = torch.stack([MAJORITY.utility(image_NCHW), MINORITY.utility(image_NCHW)])
    assert torch.corrcoef(utility_2N)[0, 1] < -0.8


def test_a_taste_follows_the_sign_of_its_weight():
    red_and_white = torch.cat([flat(1, 0, 0), flat(1, 1, 1)])
    assert Taste("warm", warm=1).utility(red_and_white).diff() < 0
    assert Taste("bright", bright=1).utility(red_and_white).diff() > 0
    assert Taste("dim", bright=-1).utility(red_and_white).diff() < 0


def test_shipped_scale_is_the_measured_one():
    assert picture_scale() == measured_scale(measured_features(load_pictures()))


def test_gradient_is_finite_on_a_flat_grey_image():
    """The roots and the channels' extremes have no derivative there; what stands for it must be finite."""
    image_NCHW = flat(0.5, 0.5, 0.5).clone().requires_grad_()
    MAJORITY.utility(image_NCHW).sum().backward()
    assert image_NCHW.grad.isfinite().all()
