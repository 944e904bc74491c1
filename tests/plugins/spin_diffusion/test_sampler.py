"""Self-play's pairs, and what follows for the loss of a game against one's own previous iterate.

Errors e are means over C, H, W, and r those of the opponent, the reference; z, the logit, is
-(beta/2) [(e_real - r_real) - (e_generated - r_generated)], and the loss is log(1 + exp(-z)).
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit import Batch, Denoiser, Encoded, Key, Noised, Sample, Schedule, Scored
from alignkit.functional import bradley_terry_nll, ddim_move, preference_logit
from alignkit.noise import integers, noised, normal, posterior
from alignkit.rollout import Provenance, Recipe, Rollouts
from alignkit.types import Moments
from alignkit_diffusion_dpo.functional import diffusion_dpo_loss
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_spin_diffusion.sampler import SelfPlay
from alignkit_standard.sampler import SharedNoise

BETA = 300.0
SHAPE = (3, 4, 4)
SCHEDULE = Schedule(torch.linspace(0.99, 0.1, 20), (1 - torch.linspace(0.99, 0.1, 20).square()).sqrt())
PROVENANCE = Provenance(0, "opponent", "Mock", "DDIM", 20, 1.0, seed=0, precision="32-true")


class Player(Denoiser):
    """Predicts ``slope * x + offset * level`` by channel in float64: every gradient can be written down."""

    schedule, prediction_type = SCHEDULE, "epsilon"

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.slope_C, self.offset_C = torch.rand(2, 3, generator=generator, dtype=torch.float64)
        self.weights = [weight.requires_grad_() for weight in (self.slope_C, self.offset_C)]

    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        level = t_KB[..., None, None, None] / 20
        prediction_KBCHW: Tensor = (
            self.slope_C[:, None, None] * x_KBCHW + self.offset_C[:, None, None] * level
        )
        return prediction_KBCHW

    def unconditional(self) -> "Player":
        raise AssertionError("self-play asks no network")

    def errors(self, sample: Sample) -> Tensor:
        """Mean squared errors, (K, B), float64."""
        assert isinstance(sample, Noised)
        return (self(sample.x_KBCHW, sample.t_KB) - sample.target_KBCHW).square().mean((-3, -2, -1))

    def gradients(self, value: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(value, self.weights))

    @torch.no_grad()
    def error_gradients(self, sample: Noised) -> Tensor:
        """Gradient of every error by the six weights, written out, (K, B, 6).

        d/d slope_c is the mean over the channels of 2 (prediction - noise) x [channel = c]; d/d offset_c too.
        """
        wrong_KBCHW = 2 * (self(sample.x_KBCHW, sample.t_KB) - sample.target_KBCHW) / 3
        level_KBCHW = (sample.t_KB / 20)[..., None, None, None]
        by_slope, by_offset = wrong_KBCHW * sample.x_KBCHW, wrong_KBCHW * level_KBCHW
        return torch.cat([by_slope.mean((-2, -1)), by_offset.mean((-2, -1))], dim=-1)


class Pictures:
    """Real and generated pictures of ``count`` prompts, as the autoencoder's moments."""

    def __init__(self, count: int = 8, *, visit: int = 0) -> None:
        id_B = torch.arange(count) + 1000
        self.key = Key(0, id_B, torch.full((count,), visit))
        first = Key(0, id_B, torch.zeros_like(id_B))
        self.real = Moments(normal(first, "real", SHAPE), torch.full((count, *SHAPE), 0.1))
        self.generated = Moments(normal(first, "generated", SHAPE) + 0.5, torch.full((count, *SHAPE), 0.2))
        prompts = tuple(f"thing {index:05d}" for index in range(count))
        self.batch = Batch(torch.zeros(1, count, 3, 8, 8), prompts, id_B, self.key.visit_B)

    def encoded(self, *moments: Moments) -> Encoded:
        mean_KBCHW, std_KBCHW = (torch.stack(part) for part in zip(*moments, strict=True))
        return Encoded(posterior(self.key, mean_KBCHW, std_KBCHW), torch.zeros(len(self.batch.prompts), 1, 1))

    def sampler(self, folder: Path, generated_N: Moments, images_per_prompt: int = 1) -> SelfPlay:
        """A sampler in whose round the given pictures were generated, those of one prompt together."""
        sampler, count = SelfPlay(images_per_prompt=images_per_prompt), len(generated_N.mean_NCHW)
        recipe = Recipe(images_per_prompt, batch_size=count, chunk_size=count)
        store = Rollouts(folder, self.batch.prompts, recipe=recipe, provenance=PROVENANCE)
        backbone = Mock(encode_images=lambda _: generated_N, decode=lambda _: torch.zeros(1))
        store.generate(0, backbone, Mock(), Mock(forward_context=nullcontext))
        sampler.rounds.rollouts = store
        return sampler

    def sample(self, folder: Path, generated_N: Moments | None = None, images_per_prompt: int = 1) -> Noised:
        """What self-play draws for a batch of winners."""
        sampler = self.sampler(folder, generated_N or self.generated, images_per_prompt)
        return sampler(self.batch, self.encoded(self.real), Player(0), Player(0), key=self.key)


def loss(player: Player, opponent: Player, sample: Sample, beta: float = BETA) -> Tensor:
    """The game's loss, one per prompt, float64."""
    return diffusion_dpo_loss(-player.errors(sample), -opponent.errors(sample).detach(), beta=beta)


def test_pair_is_the_real_picture_and_the_generated_one(tmp_path: Path) -> None:
    """Noised to one step with one noise: (x - sigma * noise) / alpha gives both latents back."""
    pictures = Pictures()
    sample = pictures.sample(tmp_path)
    alpha_KB, sigma_KB = (level[..., None, None, None] for level in SCHEDULE.levels(sample.t_KB))
    latent_KBCHW = (sample.x_KBCHW - sigma_KB * sample.target_KBCHW) / alpha_KB
    expected = pictures.encoded(pictures.real, pictures.generated).latent_KBCHW
    assert_close(latent_KBCHW, expected, rtol=0, atol=2e-5)


def test_sample_and_loss_are_diffusion_dpos_bit_for_bit(tmp_path: Path) -> None:
    """B-T4: as if (real, generated) were a labelled pair, and the reference the model that generated."""
    pictures = Pictures()
    ours = pictures.sample(tmp_path)
    pair = pictures.batch._replace(image_KBCHW=pictures.batch.image_KBCHW.repeat(2, 1, 1, 1, 1))
    encoded = pictures.encoded(pictures.real, pictures.generated)
    theirs = SharedNoise()(pair, encoded, Player(0), None, key=pictures.key)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
    player, opponent, losses = Player(1), Player(0), []
    for sample in (ours, theirs):
        predictions = (who(sample.x_KBCHW, sample.t_KB) for who in (player, opponent))
        losses.append(DiffusionDPO(BETA)(Scored(sample, *map(sample.logp, predictions)), pair).loss_B)
    assert torch.equal(*losses)
    assert losses[0].std() > 0


def test_player_that_is_its_opponent_learns_real_minus_generated(tmp_path: Path) -> None:
    """B-T1: z = 0, so L = log 2 and dL/dz = -1/2: grad L = (beta/4) grad(e_real - e_generated)."""
    sample, player = Pictures().sample(tmp_path), Player(0)
    loss_B = loss(player, Player(0), sample)
    assert_close(loss_B, torch.full_like(loss_B, math.log(2)), rtol=0, atol=1e-15)
    real_BW, generated_BW = player.error_gradients(sample)
    expected_W = BETA / 4 * (real_BW - generated_BW).sum(0)
    assert_close(player.gradients(loss_B.sum()), expected_W, rtol=1e-10, atol=0)


def test_generated_picture_that_is_the_real_one_teaches_nothing(tmp_path: Path) -> None:
    """B-T2: step, noise and posterior noise are shared, so both sides are one point; any player."""
    pictures = Pictures()
    sample, player = pictures.sample(tmp_path, pictures.real), Player(1)
    assert torch.equal(sample.x_KBCHW[0], sample.x_KBCHW[1])
    loss_B = loss(player, Player(0), sample)
    assert_close(loss_B, torch.full_like(loss_B, math.log(2)), rtol=0, atol=1e-15)
    gradient_W = player.gradients(loss_B.sum())
    assert_close(
        gradient_W, torch.zeros_like(gradient_W), rtol=0, atol=1e-12
    )  # gradients of errors are about 1


def test_noise_of_its_own_on_each_side_would_teach_something(tmp_path: Path) -> None:
    """B-T3: then E z = 0 but z varies, and by Jensen E log(1 + exp(-z)) > log 2. Why noise is shared."""
    pictures, player = Pictures(500), Player(1)
    sample = pictures.sample(tmp_path, pictures.real)
    sigma_KB = SCHEDULE.sigma_T[sample.t_KB][..., None, None, None]
    noise_KBCHW = torch.stack([sample.target_KBCHW[0], normal(pictures.key, "another", SHAPE)])
    x_KBCHW = sample.x_KBCHW + sigma_KB * (noise_KBCHW - sample.target_KBCHW)
    loss_B = loss(player, Player(0), Noised(x_KBCHW, sample.t_KB, noise_KBCHW))
    assert loss_B.mean() > math.log(2) + 0.1
    assert player.gradients(loss_B.mean()).abs().max() > 1


def test_bound_on_the_loss_of_whole_paths(tmp_path: Path) -> None:
    """B-T5: log(1 + exp(-u)) is convex, so at the mean logit of a path it is at most its mean over steps."""
    samples = [Pictures(visit=visit).sample(tmp_path) for visit in range(10)]
    player, opponent = Player(1), Player(0)
    gains_TKB = torch.stack([opponent.errors(sample) - player.errors(sample) for sample in samples]).detach()
    logit_TB = BETA / 2 * (gains_TKB[:, 0] - gains_TKB[:, 1])
    exact_B, approximate_B = bradley_terry_nll(logit_TB.mean(0)), bradley_terry_nll(logit_TB).mean(0)
    assert (exact_B < approximate_B).all()


def test_beta_scales_the_logit(tmp_path: Path) -> None:
    """B-T6: z is linear in beta; at beta = 0 the loss is log 2 and its gradient 0."""
    sample, player, opponent = Pictures().sample(tmp_path), Player(1), Player(0)
    scores = (-player.errors(sample), -opponent.errors(sample))
    once, twice = (preference_logit(*scores, beta=beta) for beta in (BETA, 2 * BETA))
    assert_close(2 * once, twice)
    assert once.abs().min() > 0
    loss_B = loss(player, opponent, sample, beta=0)
    assert_close(loss_B, torch.full_like(loss_B, math.log(2)), rtol=0, atol=1e-15)
    assert player.gradients(loss_B.sum()).abs().max() == 0


def test_swapping_real_and_generated_negates_the_logit(tmp_path: Path) -> None:
    """B-T7: L(z) - L(-z) = -z."""
    pictures, player, opponent = Pictures(), Player(1), Player(0)
    straight = pictures.sample(tmp_path / "straight")
    pictures.real, pictures.generated = pictures.generated, pictures.real
    swapped = pictures.sample(tmp_path / "swapped")
    logit_B = preference_logit(-player.errors(straight), -opponent.errors(straight), beta=BETA)
    difference_B = loss(player, opponent, straight) - loss(player, opponent, swapped)
    assert_close(difference_B, -logit_B, rtol=1e-4, atol=1e-4)  # latents are float32


def test_player_stays_where_its_pictures_are_like_the_real_ones(tmp_path: Path) -> None:
    """B-T8: both from one pool, so the gradient at theta_k has mean 0: here within three standard errors."""
    pictures, player = Pictures(2000), Player(0)
    std_NCHW = pictures.real.std_NCHW
    sample = pictures.sample(tmp_path, Moments(normal(pictures.key, "as real", SHAPE), std_NCHW))
    real_BW, generated_BW = player.error_gradients(sample)
    gradient_BW = BETA / 4 * (real_BW - generated_BW)
    error_W = gradient_BW.std(0) / math.sqrt(len(gradient_BW))
    assert (gradient_BW.mean(0).abs() < 3 * error_W).all()
    real_BW, generated_BW = player.error_gradients(pictures.sample(tmp_path / "other"))
    assert (BETA / 4 * (real_BW - generated_BW).mean(0).abs() > 10 * error_W).any()


def test_visits_take_a_prompts_pictures_in_turn_by_chance(tmp_path: Path) -> None:
    """Three pictures of each prompt, told apart by their mean: all are used, the same at the same visit."""
    seen = []
    for visit in (0, 1, 2, 0):
        pictures = Pictures(30, visit=visit)
        number_N = torch.arange(90) % 3
        mean_NCHW = (10.0 * number_N)[:, None, None, None].expand(-1, *SHAPE).contiguous()
        sampler = pictures.sampler(
            tmp_path / str(visit), Moments(mean_NCHW, torch.zeros_like(mean_NCHW)), images_per_prompt=3
        )
        sample = sampler(pictures.batch, pictures.encoded(pictures.real), Player(0), None, key=pictures.key)
        alpha_KB, sigma_KB = (level[..., None, None, None] for level in SCHEDULE.levels(sample.t_KB))
        latent_KBCHW = (sample.x_KBCHW - sigma_KB * sample.target_KBCHW) / alpha_KB
        seen.append((latent_KBCHW[1].mean((1, 2, 3)) / 10).round().long())
    counts = torch.bincount(torch.stack(seen[:3]).flatten(), minlength=3)
    assert (counts > 15).all()
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_labelled_pairs_of_validation_are_used_as_they_are(tmp_path: Path) -> None:
    pictures = Pictures()
    pair = pictures.batch._replace(image_KBCHW=pictures.batch.image_KBCHW.repeat(2, 1, 1, 1, 1))
    encoded = pictures.encoded(pictures.generated, pictures.real)
    sampler = pictures.sampler(tmp_path, pictures.generated).eval()
    ours, theirs = (
        each(pair, encoded, Player(0), None, key=pictures.key) for each in (sampler, SharedNoise())
    )
    assert torch.equal(ours.x_KBCHW, theirs.x_KBCHW)
    assert torch.equal(ours.target_KBCHW, theirs.target_KBCHW)


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    pictures = Pictures(2)
    small = Moments(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2))
    with pytest.raises(
        ValueError, match=r"winners have the shape \(1, 2, 3, 4, 4\), .* \(1, 2, 3, 2, 2\): data.resolution"
    ):
        pictures.sample(tmp_path, small)


def test_the_trainer_is_given_one_callback_however_often_it_asks() -> None:
    sampler = SelfPlay()
    assert sampler.callbacks() == sampler.callbacks() == [sampler.rounds]
    assert SelfPlay.reads == "winner"


def test_bad_settings_name_the_sampler() -> None:
    with pytest.raises(ValueError, match=r"^SelfPlay: betas must be 3 positive numbers, one per round, got"):
        SelfPlay(betas=[1.0])


class Net(nn.Module):
    """A denoiser of points in the plane, which are pictures of one pixel and two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        told = torch.cat([x_KBCHW.flatten(2), t_KB[..., None] / 20], dim=-1)
        noise_KBCHW: Tensor = self.layers(told).view_as(x_KBCHW)
        return noise_KBCHW

    @torch.no_grad()
    def draw(self, noise_NCHW: Tensor) -> Tensor:
        """Denoises along the schedule, deterministically."""
        bar_T, x_NCHW = SCHEDULE.alpha_T.square(), noise_NCHW
        for step in range(19, -1, -1):
            eps = self(x_NCHW[None], torch.full((1, len(x_NCHW)), step))[0]
            below = bar_T[step - 1] if step else 1.0
            x_NCHW = ddim_move(x_NCHW, eps, alpha_bar_from=bar_T[step], alpha_bar_to=below)
        return x_NCHW


def trained(net: Net, steps: int, lr: float, step_loss: Callable[[Key], Tensor]) -> Net:
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for step in range(steps):
        key = Key(0, torch.arange(256), torch.full((256,), step))
        optimizer.zero_grad()
        step_loss(key).backward()
        optimizer.step()
    return net


def test_rounds_move_the_player_to_the_data() -> None:
    """B-T12: real points are one of the two clusters that the base covers; each round draws more of it.

    A round: the opponent draws, then the player learns (real, drawn) against it.
    """

    def cluster(key: Key, side: Tensor) -> Tensor:
        return normal(key, "points", (2, 1, 1)) * 0.2 + torch.stack([side, 0 * side], 1)[..., None, None]

    def noisy(latent_KBCHW: Tensor, key: Key) -> Noised:
        t_B = integers(key, "step", 20)
        return noised(latent_KBCHW, t_B, schedule=SCHEDULE, prediction_type="epsilon", key=key)

    def share(net: Net) -> float:
        return float((net.draw(normal(drawn, "start", (2, 1, 1)))[:, 0] > 0).float().mean())

    def base_loss(key: Key) -> Tensor:
        sample = noisy(cluster(key, 2.0 * integers(key, "side", 2) - 1)[None], key)
        return -sample.logp(base(sample.x_KBCHW, sample.t_KB)).mean()

    torch.manual_seed(0)
    drawn = Key(1, torch.arange(1000), torch.zeros(1000, dtype=torch.int64))
    base = Net()
    shares = [share(trained(base, 600, 1e-3, base_loss))]
    player = base
    for _ in range(2):
        opponent = copy.deepcopy(player).requires_grad_(False)
        player = copy.deepcopy(player)

        def round_loss(key: Key, player: Net = player, opponent: Net = opponent) -> Tensor:
            generated = opponent.draw(normal(key, "start", (2, 1, 1)))
            sample = noisy(torch.stack([cluster(key, torch.ones(256)), generated]), key)
            logp_KB, ref_logp_KB = (
                sample.logp(net(sample.x_KBCHW, sample.t_KB)) for net in (player, opponent)
            )
            return diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=100.0).mean()

        trained(player, 100, 2e-4, round_loss)
        shares.append(share(player))
    assert shares == pytest.approx([0.48, 0.67, 0.81], abs=0.04)
