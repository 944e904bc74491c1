"""The forward noising process. Shape suffixes: K candidates of a prompt, best first; B prompts; C H W."""

from torch import Tensor

from alignkit import Batch, Denoiser, Encoded, Key, Noised, Sampler
from alignkit.functional import add_noise, to_v
from alignkit.noise import integers, normal


class SharedNoise(Sampler):
    """Noises all candidates of a prompt with one step and one noise, drawn anew at every visit.

    With common random numbers most of what step and noise do to the errors cancels in the margin; and two
    identical candidates have a margin of exactly 0.

    Args:
        min_step: lowest step of the schedule that is drawn.
        max_step: highest step that is drawn; the schedule's last one if not given.
    """

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
        latent_KBCHW = encoded.latent_KBCHW
        t_B = self.min_step + integers(key, "step", highest - self.min_step + 1)
        noise_BCHW = normal(key, "noise", tuple(latent_KBCHW.shape[2:]))
        t_KB = t_B.expand(len(latent_KBCHW), -1)
        noise_KBCHW = noise_BCHW.expand_as(latent_KBCHW)
        alpha_KB, sigma_KB = schedule.levels(t_KB)
        x_KBCHW = add_noise(latent_KBCHW, noise_KBCHW, alpha_KB=alpha_KB, sigma_KB=sigma_KB)
        target_KBCHW = _target(policy.prediction_type, latent_KBCHW, noise_KBCHW, alpha_KB, sigma_KB)
        return Noised(x_KBCHW, t_KB, target_KBCHW)


def _target(
    prediction_type: str, latent_KBCHW: Tensor, noise_KBCHW: Tensor, alpha_KB: Tensor, sigma_KB: Tensor
) -> Tensor:
    """What a perfect network of a checkpoint's own prediction type answers."""
    if prediction_type == "epsilon":
        return noise_KBCHW
    if prediction_type == "v_prediction":
        return to_v(latent_KBCHW, noise_KBCHW, alpha_KB=alpha_KB, sigma_KB=sigma_KB)
    raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction', got {prediction_type!r}")
