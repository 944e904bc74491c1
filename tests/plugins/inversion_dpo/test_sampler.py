"""Points of inverted paths. K = 2 candidates, B prompts, M points drawn of a path, D the grid's gap."""

import math
import warnings
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit import Batch, Denoiser, Encoded, Key, Sampler, Schedule
from alignkit.functional import bradley_terry_nll, ddim_move, preference_logit
from alignkit.policy import BoundDenoiser
from alignkit.testing import toy_batch
from alignkit.testing.pipelines import tiny_stable_diffusion
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_inversion_dpo.functional import inversion_grid, invert, sample
from alignkit_inversion_dpo.inversion import noise_estimate, prompt_key
from alignkit_inversion_dpo.sampler import DDIMInversion, DDIMInversionDeviation, PathPoints
from tests.plugins.inversion_dpo.conftest import GAP, NUM_STEPS, Counting, Step

SAMPLERS = (DDIMInversion, DDIMInversionDeviation)


def flipped(batch: Batch) -> Batch:
    return batch._replace(image_KBCHW=batch.image_KBCHW.flip(0))


def test_points_lie_on_the_path_and_targets_lead_there_from_the_clean_latent() -> None:
    """The path written out: x' = move(x, e(x, t); ab(t - D) -> ab(t)), told t, from ab(0) and t = D on."""
    step = Step()
    points = step.draw(DDIMInversion(NUM_STEPS, points=None))
    alpha_bar_T = step.backbone.schedule.alpha_T.double().square().tolist()
    x_KBCHW, path, clean_KBCHW = step.encoded.mean_KBCHW, [], step.encoded.mean_KBCHW
    for t in range(GAP, 50, GAP):
        e_KBCHW = step.reference(x_KBCHW, torch.full((2, 4), t))
        x_KBCHW = ddim_move(
            x_KBCHW, e_KBCHW, alpha_bar_from=alpha_bar_T[t - GAP], alpha_bar_to=alpha_bar_T[t]
        )
        path.append(x_KBCHW)
    assert_close(points.x_KBCHW, torch.stack(path, 1).flatten(0, 1))
    assert torch.equal(points.t_KB, torch.arange(GAP, 50, GAP)[:, None].repeat(2, 4))
    alpha_KB, sigma_KB = (
        level[..., None, None, None] for level in step.backbone.schedule.levels(points.t_KB)
    )
    back_KBCHW = alpha_KB * clean_KBCHW.repeat_interleave(9, 0) + sigma_KB * points.target_KBCHW
    assert_close(back_KBCHW, points.x_KBCHW)
    assert torch.equal(points.weight_KB, torch.ones(18, 4))


def test_logp_is_the_mean_over_a_paths_points_of_weighted_errors() -> None:
    """Rows are candidate by candidate: errors 1, 4 of the first, 9, 16 of the second, weights 2 and 0.5."""
    offset_KB = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    blank_KBCHW = torch.zeros(4, 1, 3, 2, 2)
    weight_KB = torch.tensor([2.0, 0.5, 2.0, 0.5])[:, None]
    points = PathPoints(blank_KBCHW, torch.zeros(4, 1), blank_KBCHW, weight_KB, 2)
    logp_KB = points.logp((blank_KBCHW + offset_KB[..., None, None, None]).bfloat16())
    assert torch.equal(logp_KB, torch.tensor([[-2.0], [-13.0]]))


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("points", [1, 3, None])
def test_policy_equal_to_reference_costs_log_2(kind: type[Sampler], points: int | None) -> None:
    step = Step()
    logit_B = step.logit(step.draw(kind(NUM_STEPS, points=points)))
    assert torch.equal(logit_B, torch.zeros(4))
    assert_close(bradley_terry_nll(logit_B), torch.full((4,), math.log(2)))


def test_reference_is_a_saddle_of_the_figures_loss_and_not_of_the_anchored_one() -> None:
    """A deviation is a square of policy - reference: its slope is zero where they are equal."""
    norms = {}
    for kind in SAMPLERS:
        step = Step()
        gradient = step.gradient(step.logit(step.draw(kind(NUM_STEPS, points=None))))
        norms[kind] = float(gradient.norm())
    assert norms[DDIMInversionDeviation] == 0
    assert norms[DDIMInversion] > 1e-3


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("left", [0.0, 0.1])
def test_beta_of_zero_teaches_nothing(kind: type[Sampler], left: float) -> None:
    step = Step(left=left)
    logit_B = step.logit(step.draw(kind(NUM_STEPS)), beta=0.0)
    assert torch.equal(logit_B, torch.zeros(4))
    assert step.gradient(logit_B).abs().max() == 0


@pytest.mark.parametrize(("candidate", "sign"), [(0, -1), (1, 1)])
def test_leaving_the_reference_on_the_winners_path_costs_and_on_the_losers_pays(
    candidate: int, sign: int
) -> None:
    """The figure's sign: dev_w - dev_l must fall. The released code's would be the opposite."""
    step = Step()
    points = step.draw(DDIMInversionDeviation(NUM_STEPS, points=3))
    moved_KBCHW = step.reference(points.x_KBCHW, points.t_KB)
    moved_KBCHW[3 * candidate : 3 * candidate + 3] += 0.1
    logit_B = preference_logit(points.logp(moved_KBCHW), torch.zeros(2, 4), beta=100.0)
    assert (sign * logit_B > 0.1).all()
    losses_B = bradley_terry_nll(logit_B)
    assert ((losses_B < math.log(2)) == (sign > 0)).all()


def test_coming_closer_to_the_winners_noise_pays() -> None:
    step = Step()
    points = step.draw(DDIMInversion(NUM_STEPS, points=3))
    ref_KBCHW = step.reference(points.x_KBCHW, points.t_KB)
    closer_KBCHW = ref_KBCHW.clone()
    closer_KBCHW[:3] += 0.2 * (points.target_KBCHW - ref_KBCHW)[:3]
    logit_B = preference_logit(points.logp(closer_KBCHW), points.logp(ref_KBCHW), beta=100.0)
    assert (logit_B > 0).all()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_swapping_the_candidates_negates_the_logit(kind: type[Sampler]) -> None:
    """So that loss(z) - loss(-z) = -z, for any policy."""
    logits = []
    for batch in (toy_batch(4), flipped(toy_batch(4))):
        step = Step(batch, left=0.1)
        logits.append(step.logit(step.draw(kind(NUM_STEPS, points=4))))
    assert logits[0].abs().min() > 0.01
    assert_close(logits[1], -logits[0])
    assert_close(bradley_terry_nll(logits[0]) - bradley_terry_nll(logits[1]), -logits[0])


def test_deviation_is_zero_only_where_predictions_are_equal() -> None:
    step = Step(left=0.1)
    points = step.draw(DDIMInversionDeviation(NUM_STEPS, points=None))
    assert torch.equal(points.logp(points.target_KBCHW), torch.zeros(2, 4))
    assert (points.logp(step.policy(points.x_KBCHW, points.t_KB)) < 0).all()
    alpha_bar_KB = step.backbone.schedule.alpha_T.double().square()[points.t_KB]
    assert_close(points.weight_KB, (1 / (2 * alpha_bar_KB)).float())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DDIMInversion, {}),
        (DDIMInversion, {"noised_start": True}),
        (DDIMInversion, {"shared_noise": True}),
        (DDIMInversionDeviation, {}),
        (DDIMInversionDeviation, {"noised_start": True}),
    ],
)
def test_identical_candidates_have_no_margin_and_no_gradient(kind: type[Sampler], options: dict) -> None:
    """For any policy, up to the order of sums in float32; no noise but the prompt's tells them apart."""
    norms = []
    for same in (True, False):
        batch = toy_batch(4)
        if same:
            batch = batch._replace(image_KBCHW=batch.image_KBCHW[:1].repeat(2, 1, 1, 1, 1))
        step = Step(batch, left=0.1)
        logit_B = step.logit(step.draw(kind(NUM_STEPS, points=4, **options)))
        norms.append(float(step.gradient(logit_B).norm()))
        if same:
            assert_close(bradley_terry_nll(logit_B), torch.full((4,), math.log(2)), rtol=0, atol=1e-5)
    assert norms[0] < 1e-4 * norms[1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(DDIMInversion, {}), (DDIMInversion, {"shared_noise": True}), (DDIMInversionDeviation, {})],
)
def test_all_points_drawn_are_all_points(kind: type[Sampler], options: dict) -> None:
    step = Step(left=0.1)
    drawn, whole = (step.draw(kind(NUM_STEPS, points=points, **options)) for points in (9, None))
    for one, other in zip(drawn, whole, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_points_are_drawn_without_replacement_evenly_and_alike_for_the_candidates() -> None:
    """3 of 9 for 600 prompts: each point in a third of them, 200 +- 11.5; four deviations are allowed."""
    step = Step(toy_batch(600))
    sampler = DDIMInversion(NUM_STEPS, points=3)
    points = step.draw(sampler)
    assert torch.equal(points.t_KB[:3], points.t_KB[3:])
    assert (points.t_KB[:3].diff(dim=0) > 0).all()
    counts = torch.bincount(points.t_KB[:3].flatten(), minlength=50)[GAP::GAP]
    assert counts.sum() == 1800
    assert (counts - 200).abs().max() < 47
    later = Step(toy_batch(600, visit=1)).draw(sampler)
    assert not torch.equal(later.t_KB, points.t_KB)


def test_more_points_than_a_path_has_are_refused() -> None:
    with pytest.raises(ValueError, match="DDIMInversion: points must be at most 9, all of a path, got 10"):
        Step().draw(DDIMInversion(NUM_STEPS, points=10))


@pytest.mark.parametrize(("spacing", "points"), [("leading", 9), ("trailing", 10)])
def test_a_transition_that_stands_still_is_no_point(spacing: str, points: int) -> None:
    step = Step()
    drawn = step.draw(DDIMInversion(NUM_STEPS, points=None, spacing=spacing))
    assert drawn.num_points == points
    assert step.reference.asked == points * 8


@pytest.mark.parametrize(
    ("guidance", "conditional", "unconditional"), [(1.0, 9, None), (0.0, 0, 9), (2.0, 9, 9)]
)
def test_guidance_asks_what_it_needs(guidance: float, conditional: int, unconditional: int | None) -> None:
    """Both ways E = e_u + g (e_c - e_u): at 1 it is e_c, at 0 e_u."""
    step = Step()
    sampler = DDIMInversion(NUM_STEPS, points=None, guidance=guidance)
    points = step.draw(sampler)
    assert step.reference.asked == conditional * 8
    asked = step.reference.without_prompt
    assert (asked and asked.asked) == (unconditional and unconditional * 8)
    plain = step.reference.unconditional()

    def guided(x_KBCHW: Tensor, t: int, level: float) -> Tensor:
        t_KB = torch.full((2, 4), t)
        e_KBCHW = plain(x_KBCHW, t_KB)
        return e_KBCHW + guidance * (step.reference(x_KBCHW, t_KB) - e_KBCHW)

    grid = inversion_grid(step.backbone.schedule.alpha_T.double().square(), num_steps=NUM_STEPS)[1:]
    expected = invert(guided, step.encoded.mean_KBCHW, grid)
    assert_close(points.x_KBCHW, expected.transpose(0, 1).flatten(0, 1))


def test_noised_start_is_the_forward_process_with_one_noise_per_prompt() -> None:
    """At t = D: sqrt(ab) x_0 + sqrt(1 - ab) n, n the same for winner and loser, in all runs and visits."""
    step = Step()
    points = step.draw(DDIMInversion(NUM_STEPS, points=None, noised_start=True))
    first_KBCHW = points.target_KBCHW.unflatten(0, (2, 9))[:, 0]
    assert_close(first_KBCHW[0], first_KBCHW[1], rtol=0, atol=1e-5)
    assert step.reference.asked == 8 * 8
    # prompts repeat in the toy batch every six
    noise_BCHW = Step(toy_batch(12)).draw(DDIMInversion(NUM_STEPS, points=None, noised_start=True))
    noise_BCHW = noise_BCHW.target_KBCHW.unflatten(0, (2, 9))[0, 0]
    assert_close(noise_BCHW[:6], noise_BCHW[6:], rtol=0, atol=1e-5)
    assert_close(noise_BCHW[:4], first_KBCHW[0], rtol=0, atol=1e-5)
    assert noise_BCHW[:6].mean().item() == pytest.approx(0, abs=0.12)  # 1152 numbers: 0.03 each
    assert noise_BCHW[:6].std().item() == pytest.approx(1, abs=0.09)
    assert (noise_BCHW[0] - noise_BCHW[1]).abs().mean() > 0.5
    later = step.key._replace(seed=5, visit_B=step.key.visit_B + 3)
    again = DDIMInversion(NUM_STEPS, points=None, noised_start=True)(
        step.batch, step.encoded, step.policy, step.reference, key=later
    )
    assert torch.equal(again.x_KBCHW, points.x_KBCHW)


@pytest.mark.parametrize("points", [4, None])
def test_shared_noise_is_that_of_one_candidates_path_at_every_point(points: int | None) -> None:
    """X = sqrt(ab) x_0 + sqrt(1 - ab) n with one n for both: the one's on its path, and either's in turn."""
    batch = toy_batch(40)
    own, shared = (
        Step(batch).draw(DDIMInversion(NUM_STEPS, points=points, shared_noise=shared_noise))
        for shared_noise in (False, True)
    )
    count = own.num_points
    assert torch.equal(shared.t_KB, own.t_KB)
    assert torch.equal(shared.target_KBCHW[:count], shared.target_KBCHW[count:])
    on_path_KB = (shared.x_KBCHW - own.x_KBCHW).abs().amax((-3, -2, -1)) < 1e-5
    assert torch.equal(on_path_KB[:count], ~on_path_KB[count:])
    assert on_path_KB[:count].float().mean().item() == pytest.approx(0.5, abs=0.16)  # 160 coins: 0.04 each
    off_path = ~on_path_KB[..., None, None, None]
    clean_KBCHW = Step(batch).encoded.mean_KBCHW.repeat_interleave(count, 0)
    alpha_KB, sigma_KB = (level[..., None, None, None] for level in Step().backbone.schedule.levels(own.t_KB))
    expected_KBCHW = alpha_KB * clean_KBCHW + sigma_KB * own.target_KBCHW.unflatten(0, (2, count)).flip(
        0
    ).flatten(0, 1)
    assert_close(shared.x_KBCHW * off_path, expected_KBCHW * off_path, rtol=1e-4, atol=1e-5)


def test_shared_noise_of_a_single_candidate_is_its_own() -> None:
    batch = toy_batch(4, candidates=1)
    own, shared = (
        Step(batch).draw(DDIMInversion(NUM_STEPS, points=3, shared_noise=shared_noise))
        for shared_noise in (False, True)
    )
    assert_close(shared.x_KBCHW, own.x_KBCHW)
    assert torch.equal(shared.target_KBCHW, own.target_KBCHW)


def test_prompts_name_their_draws() -> None:
    key = prompt_key(["a", "b", "a", ""], torch.device("cpu"))
    assert len(set(key.id_B.tolist())) == 3
    assert key.id_B[0] == key.id_B[2]


class Velocity(Denoiser):
    """The velocities that a noise prediction means for a latent at the level before the told step."""

    prediction_type = "v_prediction"

    def __init__(self, inner: Denoiser, gap: int) -> None:
        self.schedule, self.inner, self.gap = inner.schedule, inner, gap

    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        alpha_KB, sigma_KB = (
            level[..., None, None, None] for level in self.schedule.levels((t_KB - self.gap).clamp(min=0))
        )
        e_KBCHW = self.inner(x_KBCHW, t_KB)
        return alpha_KB * e_KBCHW - sigma_KB * (x_KBCHW - sigma_KB * e_KBCHW) / alpha_KB

    def unconditional(self) -> "Velocity":
        return Velocity(self.inner.unconditional(), self.gap)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_velocities_give_the_same_path_and_targets_of_their_own_kind(guidance: float) -> None:
    """Alpha v + sigma x is the noise that the other target is."""
    step = Step()
    sampler = DDIMInversion(NUM_STEPS, points=None, guidance=guidance)
    epsilon = step.draw(sampler)
    step.reference = Counting(Velocity(step.reference, GAP))
    step.policy.prediction_type = "v_prediction"
    velocity = step.draw(sampler)
    assert_close(velocity.x_KBCHW, epsilon.x_KBCHW, rtol=0, atol=1e-5)
    alpha_KB, sigma_KB = (
        level[..., None, None, None] for level in step.backbone.schedule.levels(velocity.t_KB)
    )
    noise_KBCHW = alpha_KB * velocity.target_KBCHW + sigma_KB * velocity.x_KBCHW
    assert_close(noise_KBCHW, epsilon.target_KBCHW, rtol=0, atol=1e-4)


def test_velocities_deviations_weigh_the_same_at_every_level() -> None:
    """1 / (2 ab) times ab: differences of velocities are larger by 1 / sqrt(ab)."""
    step = Step()
    step.reference = Counting(Velocity(step.reference, GAP))
    step.policy.prediction_type = "v_prediction"
    points = step.draw(DDIMInversionDeviation(NUM_STEPS, points=None))
    assert_close(points.weight_KB, torch.full((18, 4), 0.5))


def test_an_unknown_prediction_type_is_refused() -> None:
    step = Step()
    step.reference.prediction_type = "sample"
    with pytest.raises(ValueError, match="must be one of epsilon, v_prediction, got 'sample'"):
        step.draw(DDIMInversion(NUM_STEPS))


@pytest.mark.parametrize("num_steps", [40, 100])
def test_steps_reach_the_network_unrounded_in_half_precision(
    num_steps: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In bfloat16 integers above 256 are rounded to even ones or worse, as the released code's reference saw.

    Paths stay in float32, whatever the networks run in.
    """
    backbone = StableDiffusion(str(tiny_stable_diffusion(tmp_path_factory.mktemp("pipeline"))))
    network = backbone.build_policy()
    seen: list[Tensor] = []
    network.time_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = toy_batch(1, candidates=1)
    key = Key(0, batch.id_B, batch.visit_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = backbone.encode(batch, key=key)
        denoiser = BoundDenoiser(backbone, network, encoded)
        points = DDIMInversion(num_steps, points=None)(batch, encoded, denoiser, denoiser, key=key)
    gap = 1000 // num_steps
    expected = [gap * i for i in range(1, num_steps)]
    assert [step.item() for step in seen] == expected
    assert not any(step.is_floating_point() for step in seen)
    assert points.t_KB.flatten().tolist() == expected
    assert points.x_KBCHW.dtype == points.target_KBCHW.dtype == torch.float32


def test_nothing_that_is_drawn_has_a_gradient() -> None:
    step = Step(left=0.1)
    for kind in SAMPLERS:
        points = step.draw(kind(NUM_STEPS, points=2))
        assert not points.x_KBCHW.requires_grad
        assert not points.target_KBCHW.requires_grad
        step.logit(points).sum().backward()
    assert all(weight.grad is None for weight in step.reference.inner._reference._outside.module.parameters())


def test_without_a_reference_it_says_who_inverts() -> None:
    step = Step()
    with pytest.raises(ValueError, match="DDIMInversion: the reference inverts the candidates, but"):
        DDIMInversion()(step.batch, step.encoded, step.policy, None, key=step.key)


def test_a_backbone_without_clean_latents_is_refused() -> None:
    step = Step()
    step.encoded = step.encoded._replace(mean_KBCHW=None)
    with pytest.raises(ValueError, match="DDIMInversion: needs a backbone whose encode gives mean_KBCHW"):
        step.draw(DDIMInversion(NUM_STEPS))


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 1}, "num_steps must be at least 2, got 1"),
        ({"points": 0}, "points must be at least 1, or null for all, got 0"),
        ({"guidance": -1.0}, "guidance must be at least 0, got -1.0"),
        ({"guidance": math.nan}, "guidance must be at least 0, got nan"),
        ({"spacing": "linspace"}, "spacing must be one of leading, trailing, got 'linspace'"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Sampler], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: {message}"):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 51}, "num_steps must be from 1 to 50, the schedule's length, got 51"),
        ({"num_steps": 20, "spacing": "trailing"}, "num_steps must divide 50"),
    ],
)
def test_grids_that_the_schedule_lacks_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^DDIMInversion: {message}"):
        Step().draw(DDIMInversion(**options))


def test_training_from_the_saddle_is_warned_of_once() -> None:
    sampler = DDIMInversionDeviation()
    (callback,) = sampler.callbacks()
    with pytest.warns(UserWarning, match="the reference is a saddle point of this loss"):
        callback.on_train_start(Mock(global_step=0), Mock())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.on_train_start(Mock(global_step=10), Mock())  # a run that is resumed
    assert DDIMInversion().callbacks() == ()


class Plane(Denoiser):
    """A small network on points of the plane, in Stable Diffusion's schedule."""

    prediction_type = "epsilon"

    def __init__(self, network: nn.Module) -> None:
        beta_T = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
        alpha_bar_T = (1 - beta_T).cumprod(0)
        self.schedule = Schedule(alpha_bar_T.sqrt().float(), (1 - alpha_bar_T).sqrt().float())
        self.network = network

    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        angle_KB1 = t_KB[..., None] / 1000 * torch.pi / 2
        waves = [f(k * angle_KB1) for k in (1, 2, 4) for f in (torch.sin, torch.cos)]
        return self.network(torch.cat([x_KBCHW[..., 0, 0], *waves], -1))[..., None, None]

    def unconditional(self) -> "Plane":
        return self


def plane_network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))


def descend(network: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def cluster(center: float, count: int, seed: int) -> Tensor:
    """Points about (center, 0), (count, 2, 1, 1)."""
    points = 0.25 * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return (points + torch.tensor([center, 0.0]))[..., None, None]


@torch.no_grad()
def winners_share(model: Plane) -> float:
    """Of 2000 points that the model draws in 50 DDIM steps."""
    grid = inversion_grid(model.schedule.alpha_T.double().square(), num_steps=50, spacing="trailing")
    noise = torch.randn(1, 2000, 2, 1, 1, generator=torch.Generator().manual_seed(3))
    return float((sample(noise_estimate(model), noise, grid)[0, :, 0, 0, 0] > 0).float().mean())


@pytest.mark.slow
def test_winners_become_frequent_in_the_plane() -> None:
    """From half of all to more than 0.8 in 200 steps: winners about (1, 0), losers about (-1, 0)."""
    network, policy_network = plane_network(0), plane_network(0)
    reference, policy = Plane(network), Plane(policy_network)

    def denoising(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        clean = torch.cat([cluster(1.0, 256, 2 * step), cluster(-1.0, 256, 2 * step + 1)])[None]
        t_KB = torch.randint(1000, (1, 512), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        alpha_KB, sigma_KB = (level[..., None, None, None] for level in reference.schedule.levels(t_KB))
        return (reference(alpha_KB * clean + sigma_KB * noise, t_KB) - noise).square().mean()

    descend(network, denoising, 1500, 2e-3)
    network.requires_grad_(False)
    policy_network.load_state_dict(network.state_dict())
    assert winners_share(policy) == pytest.approx(0.5, abs=0.08)
    sampler = DDIMInversion(num_steps=10, points=1)

    def preferring(step: int) -> Tensor:
        pair = torch.stack([cluster(1.0, 128, 2 * step + 10_000), cluster(-1.0, 128, 2 * step + 10_001)])
        encoded = Encoded(pair, torch.zeros(128, 1, 1), mean_KBCHW=pair, prompts=("",) * 128)
        key = Key(0, torch.arange(128), torch.full((128,), step))
        batch = Batch(torch.zeros(2, 128, 3, 1, 1), ("",) * 128, *key[1:])
        points = sampler(batch, encoded, policy, reference, key=key)
        scores = [points.logp(model(points.x_KBCHW, points.t_KB)) for model in (policy, reference)]
        return bradley_terry_nll(preference_logit(*scores, beta=20.0)).mean()

    descend(policy_network, preferring, 200, 3e-4)
    assert winners_share(policy) > 0.8
