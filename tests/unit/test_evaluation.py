"""Intervals, the comparison and the contact sheet."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignkit import Features, Reward
from alignkit.evaluation.compare import compare, score, table
from alignkit.evaluation.results import Scores
from alignkit.evaluation.sheet import contact_sheet, to_pictures
from alignkit.evaluation.statistics.bootstrap import intervals
from alignkit.evaluation.statistics.spread import diversity


class Brightness(Reward):
    """Mean of all pixels."""

    differentiable = True

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        assert len(prompts) == len(image_NCHW)
        return image_NCHW.mean((1, 2, 3))


def test_interval_of_many_normal_values_is_that_of_the_normal_law() -> None:
    """A mean of 400 standard normals has deviation 1/20, so 95 % of a resampled mean lie within 1.96/20."""
    value_P = np.random.default_rng(0).normal(size=400)
    (interval,) = intervals(value_P[:, None])
    assert interval.mean == pytest.approx(value_P.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * value_P.std() / 20, rel=0.03)


def test_interval_of_a_constant_is_a_point() -> None:
    assert intervals(np.full((5, 1), 2.5)) == ((2.5, 2.5, 2.5),)


def test_no_prompt_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        intervals(np.zeros((0, 1)))


def judged(*value_P: float) -> Scores:
    """One judge's scores of one picture of each prompt."""
    return Scores({"Judge": np.array(value_P)[:, None]})


def test_difference_is_paired_by_prompt() -> None:
    """Every prompt gains exactly 1: the difference has no spread, however different the prompts are."""
    report = compare(["a", "b", "c"], judged(-5.0, 0.0, 7.0), judged(-4.0, 1.0, 8.0))["Judge"]
    assert report["difference"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert report["win_rate"]["mean"] == 1.0
    assert "ratio" not in report


def test_ties_count_half_and_positive_judges_have_a_ratio() -> None:
    report = compare(["a", "b"], judged(1.0, 3.0), judged(1.0, 5.0))["Judge"]
    assert report["win_rate"]["mean"] == 0.75
    assert report["ratio"] == pytest.approx(1.5)


def test_the_table_has_a_column_for_each_figure_however_long() -> None:
    small = {"mean": -0.0004, "low": -0.00051, "high": 0.0}
    figures = {"base": {"mean": 0.5, "low": 0.25, "high": 0.75}, "aligned": small, "difference": small}
    found = table(
        {"Judge": {**figures, "win_rate": {"mean": 0.125, "low": 0, "high": 1}}, "far": {"aligned": small}}
    )
    assert found.replace("\N{MINUS SIGN}", "-").splitlines() == [
        "                       base                       aligned                    difference    wins",
        "Judge  0.500 [0.250, 0.750]  -4.00e-04 [-5.10e-04, 0.000]  -4.00e-04 [-5.10e-04, 0.000]  12.5 %",
        "far                          -4.00e-04 [-5.10e-04, 0.000]",
    ]


class Angle(Features):
    """A point of the unit circle, as far round as the image is bright."""

    def forward(self, image_NCHW: Tensor) -> Tensor:
        angle_N = image_NCHW.mean((1, 2, 3))
        return torch.stack([angle_N.cos(), angle_N.sin()], 1)


def test_judges_see_every_image_with_its_prompt() -> None:
    image_PMCHW = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(2, 2, 1, 1, 1).expand(2, 2, 3, 4, 4)
    scores = score(image_PMCHW, ["a", "b"], rewards=[Brightness()], features=Angle())
    np.testing.assert_allclose(scores.reward_PS["Brightness"], [[0.0, 1.0], [0.5, 0.5]])
    np.testing.assert_allclose(scores.feature_PSD[0], [[1, 0], [np.cos(1), np.sin(1)]], atol=1e-7)


def test_embeddings_tell_of_diversity_and_displacement() -> None:
    """Angles between images: 1 for the base, 0.5 for the aligned, each of which moved by 0.25."""
    base = score(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1), ["a"], rewards=[], features=Angle())
    aligned = score(torch.tensor([0.25, 0.75]).view(1, 2, 1, 1, 1), ["a"], rewards=[], features=Angle())
    report = compare(["a"], base, aligned)
    assert report["diversity"]["base"]["mean"] == pytest.approx(1 - np.cos(1))
    assert report["diversity"]["aligned"]["mean"] == pytest.approx(1 - np.cos(0.5))
    share = np.array([1 + np.cos(1), 1 - np.cos(1)]) / 2
    assert report["vendi"]["base"]["mean"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert report["displacement"]["aligned"]["mean"] == pytest.approx(1 - np.cos(0.25))


def test_one_image_of_a_prompt_has_no_diversity() -> None:
    shown = score(torch.zeros(1, 1, 1, 1, 1), ["a"], rewards=[], features=Angle())
    assert set(compare(["a"], shown, shown)) == {"displacement"}
    with pytest.raises(ValueError, match="at least 2 images of a prompt, got 1"):
        diversity(np.ones((3, 1, 1)))


def test_sheet_shows_every_picture_enlarged_in_whole_pixels() -> None:
    red = Image.new("RGB", (32, 32), "red")
    sheet = contact_sheet([[red, red], [red, red]], ["base", "aligned"], ["a long prompt of many words", "b"])
    pixels = np.asarray(sheet).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(1).sum() == 4 * 96 * 96


def test_pictures_are_clamped() -> None:
    picture = to_pictures(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1))[0]
    assert picture.getpixel((0, 0)) == (0, 128, 255)
