"""The forward noising process. Shape suffix: B prompts."""

from alignkit import Batch, Denoiser, Encoded, Key, Noised, Sampler
from alignkit.noise import integers, noised


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
        t_B = self.min_step + integers(key, "step", highest - self.min_step + 1)
        return noised(
            encoded.latent_KBCHW, t_B, schedule=schedule, prediction_type=policy.prediction_type, key=key
        )
