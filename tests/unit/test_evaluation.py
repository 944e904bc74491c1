"""Intervals, the comparison and the contact sheet."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric

from alignkit import Reward
from alignkit.evaluation.bootstrap import bootstrap
from alignkit.evaluation.compare import compare, judge, table
from alignkit.evaluation.sheet import contact_sheet, to_pictures


class Brightness(Reward):
    """Mean of all pixels."""

    differentiable = True

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        assert len(prompts) == len(image_NCHW)
        return image_NCHW.mean((1, 2, 3))


def test_interval_of_many_normal_values_is_that_of_the_normal_law() -> None:
    """A mean of 400 standard normals has deviation 1/20, so 95 % of a resampled mean lie within 1.96/20."""
    value_P = np.random.default_rng(0).normal(size=400)
    interval = bootstrap(value_P)
    assert interval.mean == pytest.approx(value_P.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * value_P.std() / 20, rel=0.03)


def test_interval_of_a_constant_is_a_point() -> None:
    assert bootstrap(np.full(5, 2.5)) == (2.5, 2.5, 2.5)


def test_no_prompt_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap(np.array([]))


def test_difference_is_paired_by_prompt() -> None:
    """Every prompt gains exactly 1: the difference has no spread, however different the prompts are."""
    base = {"Judge": np.array([-5.0, 0.0, 7.0])}
    report = compare(base, {"Judge": base["Judge"] + 1})["Judge"]
    assert report["difference"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert report["win_rate"]["mean"] == 1.0
    assert "ratio" not in report


def test_ties_count_half_and_positive_judges_have_a_ratio() -> None:
    report = compare({"Judge": np.array([1.0, 3.0])}, {"Judge": np.array([1.0, 5.0])})["Judge"]
    assert report["win_rate"]["mean"] == 0.75
    assert report["ratio"] == pytest.approx(1.5)
    assert "Judge" in table({"Judge": report})


def test_judges_see_each_prompts_images() -> None:
    """Rewards average over a prompt's images; metrics are reset between prompts."""
    image_PMCHW = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(2, 2, 1, 1, 1).expand(2, 2, 3, 4, 4)

    class Spread(MeanMetric):
        def update(self, image_NCHW: Tensor, prompts: Sequence[str]) -> None:  # type: ignore[override]
            assert len(set(prompts)) == 1
            super().update(image_NCHW.mean((1, 2, 3)).std())

    scores = judge(image_PMCHW, ["a", "b"], rewards=[Brightness()], metrics=[Spread()])
    np.testing.assert_allclose(scores["Brightness"], [0.5, 0.5])
    np.testing.assert_allclose(scores["Spread"], [0.5**0.5, 0.0], atol=1e-7)


def test_sheet_shows_every_picture_enlarged_in_whole_pixels() -> None:
    red = Image.new("RGB", (32, 32), "red")
    sheet = contact_sheet([[red, red], [red, red]], ["base", "aligned"], ["a long prompt of many words", "b"])
    pixels = np.asarray(sheet).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(1).sum() == 4 * 96 * 96


def test_pictures_are_clamped() -> None:
    picture = to_pictures(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1))[0]
    assert picture.getpixel((0, 0)) == (0, 128, 255)
