"""DDIM inversion: a, b are levels (values of alpha-bar), D the gap of a grid, N its number of steps."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor
from torch.testing import assert_close

from alignkit.functional import add_noise, ddim_move
from alignkit_inversion_dpo.functional import (
    Spacing,
    anchored_target,
    deviation_weight,
    guided,
    inversion_grid,
    invert,
    noise_from_v,
    round_trip_error,
    sample,
    weighted_mean,
)

# the schedule of Stable Diffusion
BETA_T = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
ALPHA_BAR_T = (1 - BETA_T).cumprod(0)
EXACT = {"rtol": 0, "atol": 1e-12}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(x: Tensor, step: int, level: float) -> Tensor:
    """A noise estimate that depends on everything it is given but the level."""
    return (0.7 * x + step / 500).sin()


class Mixture:
    """The exact noise estimate for data of two normal clusters along the diagonal; unit spread in every axis.

    With x_t = sqrt(ab) x_0 + sqrt(1 - ab) n the marginal is a mixture of normals with mean sqrt(ab) mu and
    variance v = ab s^2 + 1 - ab, so its score is sum_k p_k(x) (sqrt(ab) mu_k - x) / v, and the noise estimate
    is -sqrt(1 - ab) times that.

    Args:
        deviation: s, of each cluster.
    """

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation
        self.mean_2 = math.sqrt(1 - deviation**2) * torch.tensor([1.0, -1.0], dtype=torch.float64)

    def __call__(self, x: Tensor, step: int, level: float) -> Tensor:
        ab = float(ALPHA_BAR_T[step])
        variance = ab * self.deviation**2 + 1 - ab
        center_2 = ab**0.5 * self.mean_2
        distance_N2 = (x[..., None, :] - center_2[:, None]).square().sum(-1)
        share_N2 = (-distance_N2 / (2 * variance)).softmax(-1)
        return (1 - ab) ** 0.5 * (x - share_N2 @ center_2[:, None]) / variance

    def draw(self, count: int) -> Tensor:
        """Data, two numbers each."""
        side_N1 = torch.where(normal(count, 1, seed=1) > 0, 0, 1)
        return self.mean_2[side_N1] + self.deviation * normal(count, 2)


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({"num_steps": 80}, (0, 0), (948, 936)),  # the released code's grid
        ({"num_steps": 50}, (0, 0), (980, 960)),
        ({"num_steps": 50, "offset": 1}, (1, 0), (981, 961)),
        ({"num_steps": 50, "spacing": "trailing"}, (19, 0), (999, 979)),
        ({"num_steps": 1000}, (0, 0), (999, 998)),
        ({"num_steps": 1}, (0, 0), (0, 0)),
    ],
)
def test_grids(options: dict, first: tuple[int, int], last: tuple[int, int]) -> None:
    """Leading: i D + offset; trailing: (i + 1) D - 1; from the level D steps below, or that of step 0."""
    grid = inversion_grid(ALPHA_BAR_T, **options)
    assert len(grid) == options["num_steps"]
    for transition, (step, before) in ((grid[0], first), (grid[-1], last)):
        assert transition == (step, float(ALPHA_BAR_T[before]), float(ALPHA_BAR_T[step]))


@pytest.mark.parametrize(
    ("offset", "clean_level", "stands_still"), [(0, None, True), (1, None, False), (0, 1.0, False)]
)
def test_first_transition_stands_still_only_without_offset_and_with_the_level_of_step_0(
    offset: int, clean_level: float | None, stands_still: bool
) -> None:
    grid = inversion_grid(ALPHA_BAR_T, num_steps=80, offset=offset, clean_level=clean_level)
    assert [step.level_from == step.level_to for step in grid] == [stands_still] + 79 * [False]
    x = normal(5)
    moved = ddim_move(x, normal(5, seed=1), alpha_bar_from=grid[0].level_from, alpha_bar_to=grid[0].level_to)
    assert torch.allclose(moved, x, rtol=0, atol=1e-15) == stands_still


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_steps": 50, "spacing": "linspace"},
            "spacing must be one of leading, trailing, got 'linspace'",
        ),
        ({"num_steps": 80, "spacing": "trailing"}, "num_steps must divide 1000.*got 80"),
        ({"num_steps": 0}, "num_steps must be from 1 to 1000, the schedule's length, got 0"),
        ({"num_steps": 1001}, "num_steps must be from 1 to 1000, the schedule's length, got 1001"),
        ({"num_steps": 50, "offset": 20}, "offset must be below 20 with 50 steps, and not below 0, got 20"),
        ({"num_steps": 50, "offset": -1}, "got -1"),
    ],
)
def test_grids_that_do_not_exist_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inversion_grid(ALPHA_BAR_T, **options)


def test_a_schedule_that_ends_without_signal_has_no_trailing_grid() -> None:
    """Zero terminal SNR: at level 0 the noise says nothing of the picture, and sampling divides by 0."""
    zero_terminal_T = ALPHA_BAR_T.clone()
    zero_terminal_T[-1] = 0
    with pytest.raises(ValueError, match="spacing must be 'leading' with a schedule whose last step, 999"):
        inversion_grid(zero_terminal_T, num_steps=50, spacing="trailing")
    assert inversion_grid(zero_terminal_T, num_steps=50)[-1].step == 980


@pytest.mark.parametrize("num_steps", [1, 7, 50, 80])
@pytest.mark.parametrize("clean_level", [None, 1.0])
def test_round_trip_with_constant_noise_is_exact(num_steps: int, clean_level: float | None) -> None:
    """The two moves are inverses for the same noise estimate: all error comes from asking elsewhere."""
    grid = inversion_grid(ALPHA_BAR_T, num_steps=num_steps, clean_level=clean_level)
    x, e = normal(64), normal(64, seed=1)
    back = sample(lambda x, step, level: e, invert(lambda x, step, level: e, x, grid)[-1], grid)
    assert_close(back, x, **EXACT)


@pytest.mark.parametrize(("spacing", "num_steps"), [("leading", 50), ("leading", 80), ("trailing", 50)])
@pytest.mark.parametrize("clean_level", [None, 1.0])
def test_oracle_noise_leads_back_to_where_it_was_added(
    spacing: Spacing, num_steps: int, clean_level: float | None
) -> None:
    """From sqrt(ab) x_0 + sqrt(1 - ab) e at the top to the same mixture below, which at level 1 is x_0."""
    grid = inversion_grid(ALPHA_BAR_T, num_steps=num_steps, spacing=spacing, clean_level=clean_level)
    x_0, e = normal(64), normal(64, seed=1)

    def at(level: float) -> Tensor:
        return level**0.5 * x_0 + (1 - level) ** 0.5 * e

    assert_close(
        sample(lambda x, step, level: e, at(grid[-1].level_to), grid), at(grid[0].level_from), **EXACT
    )
    path = invert(lambda x, step, level: e, at(grid[0].level_from), grid)
    assert_close(path, torch.stack([at(step.level_to) for step in grid]), **EXACT)


@pytest.mark.parametrize(
    ("spacing", "num_steps", "offset", "alpha_to_one"),
    [
        ("leading", 10, 0, False),
        ("leading", 50, 1, False),
        ("leading", 80, 0, False),
        ("leading", 80, 1, True),
        ("trailing", 50, 0, False),
        ("trailing", 40, 0, True),
    ],
)
def test_both_ways_are_those_of_diffusers(
    spacing: Spacing, num_steps: int, offset: int, alpha_to_one: bool
) -> None:
    """The same numbers as its two schedulers, up to their levels in float32."""
    options = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": alpha_to_one,
        "steps_offset": offset,
        "timestep_spacing": spacing,
    }
    down, up = DDIMScheduler(**options), DDIMInverseScheduler(**options)
    down.set_timesteps(num_steps)
    up.set_timesteps(num_steps)
    grid = inversion_grid(
        up.alphas_cumprod,
        num_steps=num_steps,
        spacing=spacing,
        offset=offset,
        clean_level=1.0 if alpha_to_one else None,
    )
    assert [step.step for step in grid] == up.timesteps.tolist() == down.timesteps.flip(0).tolist()
    x, expected = normal(64), [normal(64)]
    for t in up.timesteps:
        expected.append(up.step(curved(expected[-1], int(t), 0.0), t, expected[-1]).prev_sample)
    path = invert(curved, x, grid)
    assert_close(path, torch.stack(expected[1:]), rtol=0, atol=2e-5)
    back = path[-1]
    for t in down.timesteps:
        back = down.step(curved(back, int(t), 0.0), t, back).prev_sample
    assert_close(sample(curved, path[-1], grid), back, rtol=0, atol=2e-5)


def test_velocity_and_noise_lead_along_the_same_path() -> None:
    """V = sqrt(a) e - sqrt(1 - a) x_0 at the level that the latent is at, whichever step is told."""
    grid = inversion_grid(ALPHA_BAR_T, num_steps=50, clean_level=1.0)

    def by_velocity(x: Tensor, step: int, level: float) -> Tensor:
        e = curved(x, step, level)
        clean = (x - (1 - level) ** 0.5 * e) / level**0.5
        return noise_from_v(level**0.5 * e - (1 - level) ** 0.5 * clean, x, alpha_bar=level)

    paths = [invert(noise, normal(64), grid) for noise in (curved, by_velocity)]
    assert_close(paths[1], paths[0], **EXACT)
    backs = [sample(noise, paths[0][-1], grid) for noise in (curved, by_velocity)]
    assert_close(backs[1], backs[0], **EXACT)


def test_round_trip_of_a_smooth_model_is_first_order() -> None:
    """Error below 5 % of the data's spread at N = 50, and halved with half the gap: a ratio of 1.6 to 2.6."""
    model = Mixture(deviation=0.6)
    x = model.draw(2000)
    errors = []
    for num_steps in (50, 100, 200):
        grid = inversion_grid(ALPHA_BAR_T, num_steps=num_steps)
        errors.append(float(round_trip_error(x, sample(model, invert(model, x, grid)[-1], grid))))
    assert errors[0] < 0.05
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.6


def test_smooth_data_of_unit_spread_become_standard_noise() -> None:
    """The spread is 1 but for an error of first order in the gap: 3 % at N = 50, 1 % at N = 200."""
    model = Mixture(deviation=0.6)
    x = model.draw(2000)
    ends = [invert(model, x, inversion_grid(ALPHA_BAR_T, num_steps=num_steps))[-1] for num_steps in (50, 200)]
    for end, tolerance in zip(ends, (0.04, 0.02), strict=True):
        assert end.mean().item() == pytest.approx(0, abs=0.03)
        assert end.std().item() == pytest.approx(1, abs=tolerance)


def test_data_known_by_heart_keep_no_noise_and_noised_ones_keep_theirs() -> None:
    """A model of a single picture z estimates e = (x - sqrt(ab) z) / sqrt(1 - ab).

    From z itself nothing but a remnant of noise is seen, and the path is sqrt(ab) z: its end spreads like
    sqrt(ab) at the last step, not like noise. From a noised z the noise is seen as it is, and the path is the
    forward process with that noise: with the estimate of the step's own level, exactly.
    """
    z, n = normal(4000), normal(4000, seed=1)
    grid = inversion_grid(ALPHA_BAR_T, num_steps=20)[1:]

    def by_heart(x: Tensor, step: int, level: float) -> Tensor:
        return anchored_target(x, z, alpha_bar=level)

    collapsed = invert(by_heart, grid[0].level_from ** 0.5 * z, grid)
    assert_close(collapsed, torch.stack([step.level_to**0.5 * z for step in grid]), **EXACT)
    assert collapsed[-1].std() < 0.1
    start = grid[0].level_from ** 0.5 * z + (1 - grid[0].level_from) ** 0.5 * n
    forward = [step.level_to**0.5 * z + (1 - step.level_to) ** 0.5 * n for step in grid]
    assert_close(invert(by_heart, start, grid), torch.stack(forward), **EXACT)


def test_nothing_is_clipped() -> None:
    """With an estimate that is linear, paths are linear in the latent, however large it is."""
    grid = inversion_grid(ALPHA_BAR_T, num_steps=20)
    x = normal(64)
    path, large = (invert(lambda x, step, level: 0.3 * x, scale * x, grid) for scale in (1, 400))
    assert_close(large, 400 * path)


@pytest.mark.parametrize("level", [0.9, 0.1, 0.0])
def test_anchored_target_is_the_noise_that_was_added(level: float) -> None:
    x_0, noise = normal(2, 3, 4, 5, 5), normal(2, 3, 4, 5, 5, seed=1)
    level_KB = torch.full((2, 3), level, dtype=torch.float64)
    x_t = add_noise(x_0, noise, alpha_KB=level_KB.sqrt(), sigma_KB=(1 - level_KB).sqrt())
    assert_close(anchored_target(x_t, x_0, alpha_bar=level), noise, **EXACT)
    assert_close(anchored_target(x_t, x_0, alpha_bar=level_KB[..., None, None, None]), noise, **EXACT)


def test_anchored_target_at_a_point_known_by_hand() -> None:
    """At ab = 0.36: (2 - 0.6 * 1) / 0.8 = 1.75."""
    found = anchored_target(torch.tensor([2.0]), torch.tensor([1.0]), alpha_bar=0.36)
    assert_close(found, torch.tensor([1.75]))


def test_anchored_target_of_the_first_transition_is_the_noise_that_made_it() -> None:
    """From the clean latent at level 1, x_t = sqrt(ab) x_0 + sqrt(1 - ab) e."""
    first = inversion_grid(ALPHA_BAR_T, num_steps=20, spacing="trailing", clean_level=1.0)[0]
    x_0 = normal(64)
    e = curved(x_0, first.step, first.level_from)
    x_t = ddim_move(x_0, e, alpha_bar_from=first.level_from, alpha_bar_to=first.level_to)
    assert_close(anchored_target(x_t, x_0, alpha_bar=first.level_to), e, **EXACT)


def test_a_transition_misses_the_models_own_by_its_noise_error() -> None:
    """With a the level of t, b that of t - 1, B = sqrt(1 - b) - sqrt(b (1 - a) / a): B (e* - e).

    So the log-ratio of two Gaussian transitions is -B^2 / (2 s^2) times the difference of squared errors.
    """
    b, a = (float(ALPHA_BAR_T[step]) for step in (500, 550))
    before, noise, other = normal(64), normal(64, seed=1), normal(64, seed=2)
    after = ddim_move(before, noise, alpha_bar_from=b, alpha_bar_to=a)
    factor = (1 - b) ** 0.5 - (b * (1 - a) / a) ** 0.5
    missed = before - ddim_move(after, other, alpha_bar_from=a, alpha_bar_to=b)
    assert factor < 0
    assert_close(missed, factor * (noise - other), **EXACT)


def test_guidance_is_linear_between_the_two_predictions() -> None:
    conditional, unconditional = normal(8), normal(8, seed=1)
    assert_close(guided(conditional, unconditional, guidance=1.0), conditional, **EXACT)
    assert torch.equal(guided(conditional, unconditional, guidance=0.0), unconditional)
    twice = guided(conditional, unconditional, guidance=2.0)
    assert_close(twice, 2 * conditional - unconditional, **EXACT)  # the released code's


def test_weights_are_those_of_the_released_code() -> None:
    """1 / (2 ab) = (1 - ab) / (2 (1 - ab) ab); with N = 80 from 0.50 to 59.3, mean 7.14.

    The noisiest tenth of the steps carries 55 % of the weight and the noisiest quarter 83 %.
    """
    levels = [step.level_to for step in inversion_grid(ALPHA_BAR_T, num_steps=80)]
    ab_P = torch.tensor(levels, dtype=torch.float64)
    weight_P = deviation_weight(ab_P)
    assert_close(weight_P, (1 - ab_P) / (2 * (1 - ab_P) * ab_P), **EXACT)
    assert (weight_P.diff() > 0).all()
    found = [weight_P[0], weight_P[-1], weight_P.mean(), weight_P[-8:].sum() / weight_P.sum()]
    assert [float(value) for value in found] == pytest.approx([0.50, 59.3, 7.14, 0.55], rel=0.01)
    assert float(weight_P[-20:].sum() / weight_P.sum()) == pytest.approx(0.83, rel=0.01)


def test_weight_is_that_of_predicted_clean_latents() -> None:
    """|x0' - x0''|^2 / (2 (1 - ab)) = (1 - ab) / ab |e' - e''|^2 / (2 (1 - ab)); for velocities it is 1/2."""
    x, ab = normal(64), 0.2
    noise = [normal(64, seed=1), normal(64, seed=2)]
    clean = [(x - (1 - ab) ** 0.5 * e) / ab**0.5 for e in noise]
    velocity = [ab**0.5 * e - (1 - ab) ** 0.5 * z for e, z in zip(noise, clean, strict=True)]
    weight = float(deviation_weight(torch.tensor(ab, dtype=torch.float64)))
    expected = (clean[0] - clean[1]).square() / (2 * (1 - ab))
    assert_close(weight * (noise[0] - noise[1]).square(), expected)
    assert_close(weight * ab * (velocity[0] - velocity[1]).square(), expected)


def test_mean_is_over_points_and_weighted() -> None:
    """(0.5 * 1 + 2 * 3) / 2 = 3.25 and (1 * 2 + 1 * 4) / 2 = 3."""
    error_KMB = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    weight_MB = torch.tensor([[0.5, 1.0], [2.0, 1.0]])
    assert_close(weighted_mean(error_KMB, weight_MB), torch.tensor([[3.25, 3.0]]))


def test_round_trip_error_is_a_share_of_the_spread() -> None:
    """Off by 0.5 everywhere; the spread of (0, 2, 4) is 2."""
    x = torch.tensor([0.0, 2.0, 4.0])
    assert_close(round_trip_error(x, x + 0.5), torch.tensor(0.25))
