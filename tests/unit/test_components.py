"""What the bases say of themselves."""

from collections.abc import Mapping

import pytest
from torch import Tensor

from alignkit import Features, components


class Grey(Features):
    """All images look the same to it."""

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return image_NCHW.new_ones(len(image_NCHW), 1)

    def origins(self) -> Mapping[str, str]:
        return {"model": "owner/name"}


def test_provenance_is_class_distribution_and_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {Grey.__module__.partition(".")[0]: ["pytest"]}
    monkeypatch.setattr(components, "packages_distributions", lambda: found)
    assert Grey().provenance() == {
        "class": f"{Grey.__module__}.Grey",
        "distribution": f"pytest {pytest.__version__}",
        "model": "owner/name",
    }


def test_provenance_without_a_distribution_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "packages_distributions", dict)
    assert Grey().provenance() == {"class": f"{Grey.__module__}.Grey", "model": "owner/name"}
