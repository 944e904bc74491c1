"""`alignkit invert`, and the samplers in a config."""

import json
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from alignkit import cli
from alignkit.data import AlignData
from alignkit.module import AlignModule
from alignkit.testing import ToyBackbone, ToyPairs, toy_batch
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_inversion_dpo.command import Model, held_out
from alignkit_inversion_dpo.functional import sample
from alignkit_inversion_dpo.inversion import Inversion, noise_estimate
from alignkit_inversion_dpo.sampler import DDIMInversion, DDIMInversionDeviation

CONFIG = """
sampler:
  name: DDIMInversion
  num_steps: 10
  noised_start: true
  guidance: 2.0
backbone:
  class_path: alignkit.testing.ToyBackbone
data:
  train:
    class_path: alignkit.testing.ToyPairs
  validation:
    class_path: alignkit.testing.ToyPairs
  batch_size: 4
  resolution: 16
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return path


def test_it_prints_a_row_for_every_number_of_steps(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["invert", "--config", str(config), "--steps", "5", "25", "--num-pictures", "7"]) == 0
    title, columns, *rows = capsys.readouterr().out.splitlines()
    assert title == "7 held-out pictures, guidance 2, leading spacing, noised start"
    assert columns.split() == ["steps", "round", "trip", "spread", "mean", "seconds"]
    assert [row.split()[0] for row in rows] == ["5", "25"]
    for row in rows:
        assert row.split()[1].endswith("%")


def test_it_writes_figures_and_pictures(config: Path, tmp_path: Path) -> None:
    """Two different pictures a prompt of three: three rows of the first eight."""
    out = tmp_path / "out"
    arguments = ["--steps", "5", "25", "--num-pictures", "12", "--guidance", "1", "--out", str(out)]
    assert cli.main(["invert", "--config", str(config), *arguments]) == 0
    report = json.loads((out / "inversion.json").read_text())
    rows = report.pop("rows")
    assert report == {
        "config": str(config),
        "pictures": 12,
        "guidance": 1.0,
        "spacing": "leading",
        "noised_start": True,
    }
    assert [row["num_steps"] for row in rows] == [5, 25]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    with Image.open(out / "inversion.png") as sheet:
        assert sheet.width > 8 * 96
        assert sheet.height > 3 * 96


@pytest.mark.parametrize("noised_start", [False, True])
@torch.no_grad()
def test_the_figures_are_those_of_the_pictures(noised_start: bool) -> None:
    """Of 40 pictures at once: the same as in two batches of 32 and 8. The way back ends where it began."""
    pictures = held_out(AlignData(ToyPairs(), ToyPairs(), resolution=16), 40)
    assert len({image.numpy().tobytes() for image in pictures.image_NCHW}) == 40
    inversion, model = Inversion("test", 10, noised_start=noised_start), Model(ToyBackbone(), "cpu")
    row = model.measure(inversion, pictures)
    encoded, denoiser = model.bound(pictures)
    path = inversion.invert(inversion.clean(encoded), pictures.prompts, denoiser)
    grid = inversion.grid(model.backbone.schedule)
    start, way = (path[0], grid[1:]) if noised_start else (inversion.clean(encoded), grid)
    error = (sample(noise_estimate(denoiser), path[-1], way) - start).square().mean().sqrt() / start.std()
    found = (row.spread, row.mean, row.round_trip)
    expected = (float(path[-1].std()), float(path[-1].mean()), float(error))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num-pictures 0", "--num-pictures must be at least 1, got 0"),
        ("--steps 1", "alignkit invert: num_steps must be at least 2, got 1"),
        ("--steps 51", "alignkit invert: num_steps must be from 1 to 50, the schedule's length, got 51"),
        ("--guidance -1", "alignkit invert: guidance must be at least 0, got -1.0"),
        ("--stepz 3", "unrecognized arguments: --stepz 3"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: str, message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["invert", "--config", str(config), *arguments.split()]) == 2
    assert capsys.readouterr().err.startswith(f"alignkit: error: {message}")


def test_a_config_without_held_out_pairs_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = config.read_text().replace("  validation:\n    class_path: alignkit.testing.ToyPairs\n", "")
    config.write_text(lines)
    assert cli.main(["invert", "--config", str(config)]) == 2
    assert "the config has no held-out pairs; give it data.validation" in capsys.readouterr().err


def test_another_sampler_is_inverted_for_with_plain_settings(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = CONFIG.index("  name: DDIM")
    end = CONFIG.index("backbone:")
    config.write_text(CONFIG[:start] + "  name: SharedNoise\n" + CONFIG[end:])
    assert cli.main(["invert", "--config", str(config), "--steps", "5", "--num-pictures", "2"]) == 0
    assert "guidance 1, leading spacing, clean start" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "learns"), [(DDIMInversion, True), (DDIMInversionDeviation, False)])
def test_training_learns_from_the_first_step_off_the_saddle(kind: type, learns: bool, tmp_path: Path) -> None:
    """On kept paths and from log 2 on, the anchored loss falls; the figure's does not move."""
    sampler = kind(num_steps=10, points=3, cache=str(tmp_path))
    module = AlignModule(DiffusionDPO(beta=500.0), sampler, ToyBackbone(), torch.optim.SGD)
    module.configure_model()
    module._report = Mock()  # type: ignore[method-assign] # there is no Trainer to log to
    assert module.policy is not None
    optimizer = torch.optim.SGD(module.policy.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        loss = module.training_step(toy_batch(4), 0)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert (losses[3] < losses[0] - 1e-3) == learns
    assert (losses[3] == losses[0]) != learns


def test_the_step_asks_each_network_about_the_drawn_points_alone(tmp_path: Path) -> None:
    """Counted in the networks: 3 points of 2 x 4 candidates each, after 9 transitions of each once."""
    module = AlignModule(
        DiffusionDPO(), DDIMInversion(10, points=3, cache=str(tmp_path)), ToyBackbone(), torch.optim.SGD
    )
    module.configure_model()
    module._report = Mock()  # type: ignore[method-assign]
    assert module.policy is not None
    assert module.reference is not None
    counts = {"policy": 0, "reference": 0}
    with module.reference.network() as network:
        for name, asked in (("policy", module.policy), ("reference", network)):
            asked.register_forward_pre_hook(
                lambda _, given, name=name: counts.update({name: counts[name] + len(given[0])})
            )
    module.training_step(toy_batch(4), 0)
    assert counts == {"policy": 24, "reference": 24 + 9 * 8}
    module.training_step(toy_batch(4, visit=1), 0)
    assert counts == {"policy": 48, "reference": 48 + 9 * 8}
