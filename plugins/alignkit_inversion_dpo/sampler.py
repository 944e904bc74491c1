"""Points of DDIM-inverted paths, in place of the forward process.

Shape suffixes: K candidates of a prompt, best first; B prompts; M points drawn of a path; P all points of it;
C H W. Samples have K * M rows, the points of one candidate side by side.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from alignkit import Batch, Denoiser, Encoded, Key, Sampler
from alignkit.devices import sent
from alignkit.functional import add_noise, to_v
from alignkit.noise import uniform
from alignkit_inversion_dpo.functional import Spacing, anchored_target, deviation_weight, weighted_mean
from alignkit_inversion_dpo.inversion import Inversion


class PathPoints(NamedTuple):
    """Points of paths, and what is compared with a prediction there.

    Args:
        x_KBCHW: inputs of the networks, (K * M, B, C, H, W).
        t_KB: steps of the schedule, (K * M, B).
        target_KBCHW: in the networks' own prediction type.
        weight_KB: of each point's squared error, (K * M, B).
        num_points: M.
    """

    x_KBCHW: Tensor
    t_KB: Tensor
    target_KBCHW: Tensor
    weight_KB: Tensor
    num_points: int

    def logp(self, prediction_KBCHW: Tensor) -> Tensor:
        """Minus the weighted squared error, *mean* over C, H, W and over points, in float32; (K, B)."""
        error_KB = (prediction_KBCHW.float() - self.target_KBCHW).square().mean((-3, -2, -1))
        rows = (-1, self.num_points)
        return -weighted_mean(error_KB.unflatten(0, rows), self.weight_KB.unflatten(0, rows))


class DDIMInversion(Sampler):
    """Points of the paths that lead to the candidates, found by DDIM inversion under the reference.

    Inversion-DPO (Li et al., 2025) trains on the deterministic path that leads to an image in place of random
    noise. The target at a point is the noise that the forward process would need to lead there from the clean
    latent, so that any objective that Diffusion-DPO's errors fit can be trained on it. Deviation: the loss of
    the paper's figure compares the policy with the reference, whose gradient is zero where training starts;
    see ``DDIMInversionDeviation``. DERIVED; InPO's released code (https://github.com/JaydenLyh/InPO at
    a9cfc4d) has this target on paths of the policy.

    Args:
        num_steps: transitions of the inversion, at least 2; the paper's released script has 80.
        points: points of a path that a step looks at, drawn anew at every visit and shared by the candidates
            of a prompt; null looks at all. Each costs what a whole step costs at 1.
        shared_noise: looks at all candidates of a prompt with the noise of one of them's path, drawn anew for
            every point: the one on its path, the others where the forward process puts them with that noise.
            Not in the paper; for a reference that its own paths surprise too little to learn from, see the
            plugin's README.
        guidance: weight of classifier-free guidance in the inversion; 1 asks the reference once, about the
            prompt alone, and inverts best; 2 in the paper's released script.
        spacing: "leading", the released script's, or "trailing", which ends at the schedule's last step and
            needs a number of steps that divides its length.
        noised_start: reaches the first point by the forward process, with one noise per prompt, and inverts
            from there. Not in the paper; for a reference that knows the pictures by heart, whose paths else
            hold too little noise, see the plugin's README.
        cache: folder where paths are kept, one file for every picture and prompt, for this and for later
            runs; null inverts again at every visit.
    """

    asks_reference: ClassVar[bool] = True

    def __init__(
        self,
        num_steps: int = 20,
        points: int | None = 1,
        shared_noise: bool = False,
        guidance: float = 1.0,
        spacing: Spacing = "leading",
        noised_start: bool = False,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self.points, self.shared_noise = _checked("DDIMInversion", points), shared_noise
        self.inversion = Inversion("DDIMInversion", num_steps, guidance, spacing, noised_start, cache)

    @torch.no_grad()
    def forward(
        self, batch: Batch, encoded: Encoded, policy: Denoiser, reference: Denoiser | None, *, key: Key
    ) -> PathPoints:
        drawn = _drawn(self.inversion, self.points, batch, encoded, reference, key)
        x_KBCHW, clean_KBCHW = drawn.x_KBCHW, self.inversion.clean(encoded)
        clean_KBCHW = clean_KBCHW.repeat_interleave(drawn.num_points, 0)
        alpha_bar_KB = drawn.level_KB[..., None, None, None]
        noise_KBCHW = anchored_target(x_KBCHW, clean_KBCHW, alpha_bar=alpha_bar_KB).float()
        alpha_KB, sigma_KB = policy.schedule.levels(drawn.t_KB)
        if self.shared_noise:
            noise_KBCHW = drawn.of_one_candidate(noise_KBCHW)
            x_KBCHW = add_noise(clean_KBCHW, noise_KBCHW, alpha_KB=alpha_KB, sigma_KB=sigma_KB)
        target_KBCHW = noise_KBCHW
        if policy.prediction_type == "v_prediction":
            target_KBCHW = to_v(clean_KBCHW, noise_KBCHW, alpha_KB=alpha_KB, sigma_KB=sigma_KB)
        weight_KB = torch.ones_like(alpha_KB)
        return PathPoints(x_KBCHW, drawn.t_KB, target_KBCHW, weight_KB, drawn.num_points)


class DDIMInversionDeviation(Sampler):
    """How far the policy's predictions leave the reference's on the inverted paths: the paper's figure.

    With Diffusion-DPO's objective the loss is that of the pipeline figure of Inversion-DPO (Li et al., 2025):
    on the winner's path the policy is held to the reference, on the loser's it is driven away. It cannot
    start by itself: while the policy equals the reference every deviation is 0 with zero gradient, whatever
    the data, and only rounding errors start it. ``DDIMInversion`` trains from the start.

    Weights and settings are those of the released code, ``train_ddim.py`` of
    https://github.com/MIGHTYEZ/Inversion-DPO at 3e2af58. Deviations: that code has the opposite sign, so that
    its loss falls where the winner's deviation grows; it looks at the latents that transitions leave from and
    not, as the figure writes, at those that they arrive at; and it guides both networks' predictions in the
    loss with weight 2, where here only the inversion is guided.

    Args:
        num_steps: as in ``DDIMInversion``.
        points: as in ``DDIMInversion``.
        guidance: as in ``DDIMInversion``.
        spacing: as in ``DDIMInversion``.
        noised_start: as in ``DDIMInversion``.
        cache: as in ``DDIMInversion``.
    """

    asks_reference: ClassVar[bool] = True

    def __init__(
        self,
        num_steps: int = 20,
        points: int | None = 1,
        guidance: float = 1.0,
        spacing: Spacing = "leading",
        noised_start: bool = False,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self.points = _checked("DDIMInversionDeviation", points)
        self.inversion = Inversion(
            "DDIMInversionDeviation", num_steps, guidance, spacing, noised_start, cache
        )
        self._warning = SaddleWarning()

    def callbacks(self) -> Sequence[pl.Callback]:
        return (self._warning,)

    @torch.no_grad()
    def forward(
        self, batch: Batch, encoded: Encoded, policy: Denoiser, reference: Denoiser | None, *, key: Key
    ) -> PathPoints:
        drawn = _drawn(self.inversion, self.points, batch, encoded, reference, key)
        assert reference is not None  # the inversion refuses to go without
        target_KBCHW = reference(drawn.x_KBCHW, drawn.t_KB).float()
        weight_KB = deviation_weight(drawn.level_KB)
        if policy.prediction_type == "v_prediction":  # whose differences are larger by 1 / sqrt(level)
            weight_KB = weight_KB * drawn.level_KB
        return PathPoints(drawn.x_KBCHW, drawn.t_KB, target_KBCHW, weight_KB.float(), drawn.num_points)


class SaddleWarning(pl.Callback):
    """Says, when training starts, that ``DDIMInversionDeviation`` starts from a saddle."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            rank_zero_warn(
                "DDIMInversionDeviation: the reference is a saddle point of this loss. While the policy "
                "equals it the gradient is exactly 0, whatever the data: only rounding errors start the "
                "training, and they say where it goes. DDIMInversion learns from the first step"
            )


class _Drawn(NamedTuple):
    """Points of a batch's paths, folded into the rows.

    Args:
        x_KBCHW: latents, (K * M, B, C, H, W).
        t_KB: steps of the schedule, (K * M, B).
        level_KB: levels, float64, (K * M, B).
        source_MB: a candidate for every point.
    """

    x_KBCHW: Tensor
    t_KB: Tensor
    level_KB: Tensor
    source_MB: Tensor

    @property
    def num_points(self) -> int:
        return len(self.source_MB)

    def of_one_candidate(self, noise_KBCHW: Tensor) -> Tensor:
        """The noise of each point's source in place of every candidate's own."""
        noise_KMBCHW = noise_KBCHW.unflatten(0, (-1, self.num_points))
        source_1MBCHW = self.source_MB[None, ..., None, None, None].expand(1, -1, -1, *noise_KBCHW.shape[2:])
        chosen_1MBCHW: Tensor = noise_KMBCHW.gather(0, source_1MBCHW)
        return chosen_1MBCHW.expand_as(noise_KMBCHW).flatten(0, 1)


def _drawn(
    inversion: Inversion,
    points: int | None,
    batch: Batch,
    encoded: Encoded,
    reference: Denoiser | None,
    key: Key,
) -> _Drawn:
    """Draws points without replacement, the same for all candidates of a prompt."""
    path_PKBCHW = inversion.paths(batch, encoded, reference)
    assert reference is not None  # the inversion refuses to go without
    grid, device = inversion.grid(reference.schedule), path_PKBCHW.device
    total, candidates, prompts = path_PKBCHW.shape[:3]
    count = total if points is None else points
    if count > total:
        raise ValueError(f"{inversion.owner}: points must be at most {total}, all of a path, got {count}")
    # in their order, so that all of them are the same sum whether they are drawn or not
    index_MB = uniform(key, "points", total).argsort(1)[:, :count].sort(1).values.T.to(device)
    x_MBKCHW = path_PKBCHW[index_MB, :, torch.arange(prompts, device=device)]
    x_KBCHW = x_MBKCHW.movedim(2, 0).flatten(0, 1)
    t_MB = sent(torch.tensor([transition.step for transition in grid]), device)[index_MB]
    levels = [transition.level_to for transition in grid]
    level_MB = sent(torch.tensor(levels, dtype=torch.float64), device)[index_MB]
    source_PB = (uniform(key, "sources", total) * candidates).long().T.to(device)
    return _Drawn(
        x_KBCHW, t_MB.repeat(candidates, 1), level_MB.repeat(candidates, 1), source_PB.gather(0, index_MB)
    )


def _checked(owner: str, points: int | None) -> int | None:
    if points is not None and points < 1:
        raise ValueError(f"{owner}: points must be at least 1, or null for all, got {points}")
    return points
