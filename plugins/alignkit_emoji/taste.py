"""Simulated taste: a linear utility over features of pixels, so that the true reward of any image is known.

Suffixes: N images, F features, C H W.
"""

import json
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit_emoji.pictures import FOLDER

SCALE_FILE = FOLDER / "data" / "taste.json"
# keeps the gradient of a root finite where an image is grey
ROOT_EPSILON = 1e-8


class Taste(NamedTuple):
    """How much somebody likes each feature, in standard deviations of the shipped pictures.

    Args:
        name: whose taste it is.
        colourful: spread and mean of the two opponent colours, red-green and yellow-blue.
        dark: share of nearly black pixels, such as outlines.
        bright: mean luma.
        edges: mean step of luma between neighbours.
        saturation: mean distance between a pixel's largest and smallest channel.
        warm: mean of red minus blue.
    """

    name: str
    colourful: float = 0.0
    dark: float = 0.0
    bright: float = 0.0
    edges: float = 0.0
    saturation: float = 0.0
    warm: float = 0.0

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per feature, in the order of ``FEATURES``."""
        return self[1:]

    def utility(self, image_NCHW: Tensor) -> Tensor:
        """How images in [0, 1] are liked, (N,): 0 with deviation 1 over the shipped pictures."""
        return self.of_features(features(image_NCHW), picture_scale())

    def of_features(self, feature_NF: Tensor, scale: "FeatureScale") -> Tensor:
        """The utility of measured images, for those who ask several people about the same."""
        weight_F = feature_NF.new_tensor(self.weights)
        spread = (weight_F @ feature_NF.new_tensor(scale.correlation) @ weight_F).sqrt()
        mean_F, deviation_F = feature_NF.new_tensor(scale.mean), feature_NF.new_tensor(scale.deviation)
        return (feature_NF - mean_F) / deviation_F @ weight_F / spread


FEATURES = Taste._fields[1:]

MAJORITY = Taste("majority", colourful=0.6, dark=-0.8, edges=-0.3, saturation=0.6)
MINORITY = Taste("minority", dark=0.8, edges=0.5, saturation=-0.4)


class FeatureScale(NamedTuple):
    """How the features of the shipped pictures are distributed.

    Args:
        mean: per feature.
        deviation: standard deviation per feature, of the population.
        correlation: between features, row by row.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    correlation: tuple[tuple[float, ...], ...]


def features(image_NCHW: Tensor) -> Tensor:
    """Measures images in [0, 1]; (N, F) in the order of ``FEATURES``, differentiable everywhere.

    Colourfulness is M3 of Hasler and Suesstrunk (2003), channels in [0, 1]; luma is that of ITU-R BT.601.
    """
    red_NHW, green_NHW, blue_NHW = image_NCHW.unbind(1)
    luma_NHW = 0.299 * red_NHW + 0.587 * green_NHW + 0.114 * blue_NHW
    red_green_NHW = red_NHW - green_NHW
    yellow_blue_NHW = (red_NHW + green_NHW) / 2 - blue_NHW
    spread_N = red_green_NHW.var((1, 2), correction=0) + yellow_blue_NHW.var((1, 2), correction=0)
    offset_N = red_green_NHW.mean((1, 2)).square() + yellow_blue_NHW.mean((1, 2)).square()
    across_N = luma_NHW.diff(dim=2).abs().mean((1, 2))
    down_N = luma_NHW.diff(dim=1).abs().mean((1, 2))
    return torch.stack(
        [
            _root(spread_N) + 0.3 * _root(offset_N),
            torch.sigmoid(30 * (0.25 - luma_NHW)).mean((1, 2)),
            luma_NHW.mean((1, 2)),
            across_N + down_N,
            (image_NCHW.amax(1) - image_NCHW.amin(1)).mean((1, 2)),
            (red_NHW - blue_NHW).mean((1, 2)),
        ],
        dim=1,
    )


@cache
def picture_scale() -> FeatureScale:
    """Reads the distribution that ``alignkit_emoji.build.pairs`` measured."""
    content = json.loads(SCALE_FILE.read_text())
    if tuple(content["features"]) != FEATURES:
        raise ValueError(f"{SCALE_FILE.name}: features must be {FEATURES}, got {content['features']}")
    correlation = tuple(tuple(row) for row in content["correlation"])
    return FeatureScale(tuple(content["mean"]), tuple(content["deviation"]), correlation)


def _root(x: Tensor) -> Tensor:
    return (x + ROOT_EPSILON).sqrt().sub(ROOT_EPSILON**0.5)
