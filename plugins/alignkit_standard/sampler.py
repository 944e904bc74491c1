"""The forward noising process. Shape suffix: B prompts."""

import math

import torch

from alignkit import Batch, Denoiser, Encoded, Key, Noised, Sampler
from alignkit.noise import integers, noised, normal


class SharedNoise(Sampler):
    """Noises all candidates of a prompt with one step and one noise, drawn anew at every visit.

    With common random numbers most of what step and noise do to the errors cancels in the margin; and two
    identical candidates have a margin of exactly 0.

    Args:
        min_step: lowest step of the schedule that is drawn.
        max_step: highest step that is drawn; the schedule's last one if not given.
    """

    fixed = True

    def __init__(self, min_step: int = 0, max_step: int | None = None) -> None:
        super().__init__()
        if min_step < 0:
            raise ValueError(f"SharedNoise: min_step must be at least 0, got {min_step}")
        if max_step is not None and max_step < min_step:
            raise ValueError(f"SharedNoise: max_step must be at least min_step = {min_step}, got {max_step}")
        self.min_step, self.max_step = min_step, max_step

    def forward(
        self, batch: Batch, encoded: Encoded, policy: Denoiser, reference: Denoiser | None, *, key: Key
    ) -> Noised:
        schedule = policy.schedule
        last = len(schedule.alpha_T) - 1
        highest = last if self.max_step is None else self.max_step
        if highest > last:
            raise ValueError(
                f"SharedNoise: max_step must be at most {last}, the schedule's last step, got {highest}"
            )
        t_B = self.min_step + integers(key, "step", highest - self.min_step + 1)
        return noised(
            encoded.latent_KBCHW, t_B, schedule=schedule, prediction_type=policy.prediction_type, key=key
        )


class LogitNormalNoise(Sampler):
    """Noises all candidates of a prompt with one noise, most often to the middle steps of the schedule.

    The share u of the schedule's T steps is drawn with logit u from a normal distribution, and the step is
    the whole part of u T (Esser et al., 2024, eq. 19, https://arxiv.org/abs/2403.03206; the density that SD3
    was trained with). On a schedule of flow matching u is sigma before its shift; and a shift s, or
    FLUX's mu = log s, adds log s to the logit: ``location`` 1.15 visits the steps of [dev], whose schedule
    has no shift of its own here, as they lie when it draws 1024 x 1024 pixels.

    Deviation: diffusers' ``compute_density_for_timestep_sampling`` is used there on steps in falling order,
    so that its ``logit_mean`` is minus this location. They agree at 0, the default of both.

    Args:
        location: mean of the logit; the median step is T sigmoid(location). Positive: more noise.
        scale: standard deviation of the logit, > 0.
    """

    fixed = True

    def __init__(self, location: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(location):
            raise ValueError(f"LogitNormalNoise: location must be finite, got {location}")
        if not 0 < scale < math.inf:
            raise ValueError(f"LogitNormalNoise: scale must be positive, got {scale}")
        self.location, self.scale = location, scale

    def forward(
        self, batch: Batch, encoded: Encoded, policy: Denoiser, reference: Denoiser | None, *, key: Key
    ) -> Noised:
        steps = len(policy.schedule.alpha_T)
        share_B = torch.sigmoid(self.location + self.scale * normal(key, "step", ()))
        t_B = (share_B * steps).long().clamp(max=steps - 1)  # sigmoid rounds to 1 from about 17 on
        return noised(
            encoded.latent_KBCHW,
            t_B,
            schedule=policy.schedule,
            prediction_type=policy.prediction_type,
            key=key,
        )
