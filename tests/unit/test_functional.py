"""Math that papers share. Shape suffixes: K candidates of a prompt, best first; B prompts; C H W."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from alignkit.functional import (
    add_noise,
    bradley_terry_nll,
    ddim_move,
    implicit_reward,
    preference_logit,
    preference_logs,
    to_v,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_implicit_reward_is_half_beta_times_the_gain():
    """(10/2) * (-1 - -3) = 10 and (10/2) * (-2 - -1) = -5."""
    reward_KB = implicit_reward(torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-3.0], [-1.0]]), beta=10.0)
    assert_close(reward_KB, torch.tensor([[10.0], [-5.0]]))


def test_preference_logit_by_hand():
    """(4/2) * [(-1 - -2) - (-5 - -3)] = 2 * [1 - -2] = 6, and (4/2) * [(-3 - -1) - (0 - 0)] = -4."""
    logp_KB, ref_logp_KB = (
        torch.tensor([[-1.0, -3.0], [-5.0, 0.0]]),
        torch.tensor([[-2.0, -1.0], [-3.0, 0.0]]),
    )
    assert_close(preference_logit(logp_KB, ref_logp_KB, beta=4.0), torch.tensor([6.0, -4.0]))


def test_preference_logit_is_the_authors_formula():
    """U = -(beta/2) * [(e_w - e_l) - (r_w - r_l)] with errors e = -logp: 5000 there is 5000 here."""
    error_KB, ref_error_KB = normal(2, 5, seed=1).square(), normal(2, 5, seed=2).square()
    theirs_B = -0.5 * 5000 * ((error_KB[0] - error_KB[1]) - (ref_error_KB[0] - ref_error_KB[1]))
    assert_close(preference_logit(-error_KB, -ref_error_KB, beta=5000), theirs_B)


def test_margin_is_subtracted():
    logp_KB, zero_KB = torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2)
    logit_B = preference_logit(logp_KB, zero_KB, beta=2.0, margin_B=torch.tensor([0.5, -2.0]))
    assert_close(logit_B, torch.tensor([2.5, 3.0]))


@pytest.mark.parametrize("candidates", [1, 3])
def test_preference_logit_needs_two_candidates(candidates: int):
    message = f"preference_logit: needs two candidates per prompt, winner first, got {candidates}"
    with pytest.raises(ValueError, match=message):
        preference_logit(torch.zeros(candidates, 4), torch.zeros(candidates, 4), beta=1.0)


def test_preference_logs_by_hand():
    """Margins of 2, 0, -1 and 0: one right, one wrong, two ties that count half."""
    reward_KB = torch.tensor([[3.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]], requires_grad=True)
    logs = preference_logs(reward_KB, torch.tensor([2.0, 0.0, -1.0, 1.0], requires_grad=True))
    expected = {
        "rewards/chosen": 1.0,
        "rewards/rejected": 0.75,
        "rewards/margins": 0.25,
        "rewards/accuracies": 0.5,
        "logit/scale": 1.0,
    }
    assert {name: value.item() for name, value in logs.items()} == expected
    assert not any(value.requires_grad for value in logs.values())


@pytest.mark.parametrize(("winner", "accuracy"), [(1.0, 1.0), (0.0, 0.5), (-1.0, 0.0)])
def test_accuracy_of_right_tied_and_wrong(winner: float, accuracy: float):
    reward_KB = torch.tensor([[winner], [0.0]])
    assert preference_logs(reward_KB, reward_KB[0])["rewards/accuracies"] == accuracy


def test_bradley_terry_by_hand():
    """-log sigma(0) = log 2, -log sigma(log 3) = log(4/3), and exactly -u far out, where sigma underflows."""
    logit_B = torch.tensor([0.0, math.log(3), -1e4])
    assert_close(bradley_terry_nll(logit_B), torch.tensor([math.log(2), math.log(4 / 3), 1e4]))


def test_ddim_move_goes_back():
    """Up and down again with the same noise estimate is the identity, to rounding."""
    latent, eps = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1)
    there = ddim_move(latent, eps, alpha_bar_from=0.9, alpha_bar_to=0.05)
    assert (there - latent).abs().max() > 0.1
    assert_close(ddim_move(there, eps, alpha_bar_from=0.05, alpha_bar_to=0.9), latent, rtol=0, atol=1e-12)


def test_ddim_move_from_the_clean_latent_is_the_forward_process():
    """alpha_bar_from = 1: sqrt(0.25) * x + sqrt(0.75) * eps."""
    latent, eps = normal(4), normal(4, seed=1)
    assert_close(
        ddim_move(latent, eps, alpha_bar_from=1.0, alpha_bar_to=0.25), 0.5 * latent + math.sqrt(0.75) * eps
    )


def test_ddim_move_in_two_steps_is_one_step():
    """The estimate held fixed, the path is a straight one: moves compose."""
    latent, eps = normal(4), normal(4, seed=1)
    half = ddim_move(latent, eps, alpha_bar_from=0.2, alpha_bar_to=0.5)
    assert_close(
        ddim_move(half, eps, alpha_bar_from=0.5, alpha_bar_to=0.9),
        ddim_move(latent, eps, alpha_bar_from=0.2, alpha_bar_to=0.9),
    )


@pytest.mark.parametrize("step", [999, 499, 19])
def test_ddim_move_equals_diffusers_step(step: int):
    """DDIMScheduler, eta = 0, 50 steps: from ``step`` to ``step - 20``; the last ends at alpha_bar = 1."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    scheduler.set_timesteps(50)
    alpha_bar_T = scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    alpha_bar_to = alpha_bar_T[step - 20] if step >= 20 else torch.ones((), dtype=torch.float64)
    latent, eps = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    theirs = scheduler.step(eps, step, latent, eta=0.0).prev_sample
    ours = ddim_move(latent, eps, alpha_bar_from=alpha_bar_T[step], alpha_bar_to=alpha_bar_to)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.fixture
def path() -> tuple[DDPMScheduler, dict[str, Tensor], Tensor]:
    """A diffusers scheduler, its levels at 2 x 3 steps, and those steps."""
    scheduler = DDPMScheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    t_KB = torch.tensor([[0, 400, 999], [0, 400, 999]])
    alpha_bar_KB = scheduler.alphas_cumprod[t_KB]
    return scheduler, {"alpha_KB": alpha_bar_KB.sqrt(), "sigma_KB": (1 - alpha_bar_KB).sqrt()}, t_KB


def test_add_noise_equals_diffusers(path):
    scheduler, levels, t_KB = path
    latent_KBCHW, noise_KBCHW = normal(2, 3, 4, 8, 8), normal(2, 3, 4, 8, 8, seed=1)
    theirs = scheduler.add_noise(latent_KBCHW.flatten(0, 1), noise_KBCHW.flatten(0, 1), t_KB.flatten())
    assert_close(add_noise(latent_KBCHW, noise_KBCHW, **levels), theirs.unflatten(0, (2, 3)))


def test_to_v_equals_diffusers(path):
    scheduler, levels, t_KB = path
    latent_KBCHW, noise_KBCHW = normal(2, 3, 4, 8, 8), normal(2, 3, 4, 8, 8, seed=1)
    theirs = scheduler.get_velocity(latent_KBCHW.flatten(0, 1), noise_KBCHW.flatten(0, 1), t_KB.flatten())
    assert_close(to_v(latent_KBCHW, noise_KBCHW, **levels), theirs.unflatten(0, (2, 3)))


def test_velocity_and_noised_latent_give_back_the_latent(path):
    """With alpha^2 + sigma^2 = 1: alpha * x - sigma * v is the clean latent."""
    _, levels, _ = path
    latent_KBCHW, noise_KBCHW = normal(2, 3, 4, 8, 8), normal(2, 3, 4, 8, 8, seed=1)
    alpha, sigma = (level_KB[..., None, None, None] for level_KB in levels.values())
    back = alpha * add_noise(latent_KBCHW, noise_KBCHW, **levels) - sigma * to_v(
        latent_KBCHW, noise_KBCHW, **levels
    )
    assert_close(back, latent_KBCHW)
