"""Self-play: winners from the data, losers by the opponent.

Shape suffixes: K candidates of a prompt, winner first; B prompts; N images; C H W.
"""

from collections.abc import Sequence
from typing import ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from alignkit import Batch, Denoiser, Encoded, Key, Noised, Sampler
from alignkit.devices import sent
from alignkit.noise import integers, noised, posterior
from alignkit.rollout import Recipe, Request, Rollouts
from alignkit.rounds import Rounds
from alignkit.types import Reads


class SelfPlay(Sampler):
    """Real images against images of the policy's own previous iterate (SPIN-Diffusion, Yuan et al., 2024).

    Training goes in rounds. In each, the reference is the policy as the round found it, and generates the
    losers for the prompts of the winners; only winners are read from the data. Both sides share step and
    noise. Needs a reference that can be renewed: with adapters, ``alignkit.policy.FrozenCopy``.

    Deviation: one set of losers per prompt and round, not one loser per real image; ``num_steps`` and
    ``guidance`` of the paper could not be found.

    Args:
        rounds: number of rounds, which must divide ``trainer.max_steps``. The authors published three.
        images_per_prompt: losers generated for each prompt and round; a visit takes one of them.
        num_steps: sampling steps per image.
        guidance: weight of classifier-free guidance that the opponent draws with; as much as the aligned
            model will be used with. 1 switches it off, and costs half: then the opponent's pictures are
            of its own law, and the data are the fixed point.
        batch_size: images generated at once.
        chunk_size: images per file of RUN/rounds, a multiple of the batch size: what a killed run has to
            generate again.
        lr_factors: what the learning rate is multiplied by, one per round; none leaves it.
        betas: the objective's beta, one per round; none leaves it.
    """

    reads: ClassVar[Reads | None] = "winner"
    asks_reference: ClassVar[bool] = True

    def __init__(
        self,
        rounds: int = 3,
        images_per_prompt: int = 1,
        num_steps: int = 20,
        guidance: float = 7.5,
        batch_size: int = 32,
        chunk_size: int = 32,
        lr_factors: list[float] | None = None,
        betas: list[float] | None = None,
    ) -> None:
        super().__init__()
        recipe = Recipe(images_per_prompt, num_steps, guidance, batch_size, chunk_size)
        self.rounds = Rounds("SelfPlay", rounds, recipe, lr_factors or (), betas or ())
        self.renews = rounds > 1

    def callbacks(self) -> Sequence[pl.Callback]:
        return [self.rounds]

    def forward(
        self, batch: Batch, encoded: Encoded, policy: Denoiser, reference: Denoiser | None, *, key: Key
    ) -> Noised:
        """Noises winners and losers; in evaluation mode or without a run, what the batch holds."""
        latent_KBCHW = encoded.latent_KBCHW
        if self.training and self.rounds.rollouts is not None:
            loser_KBCHW = self._loser(self.rounds.rollouts, batch, latent_KBCHW, key)
            latent_KBCHW = torch.cat([latent_KBCHW, loser_KBCHW])
        t_B = integers(key, "step", len(policy.schedule.alpha_T))
        return noised(
            latent_KBCHW, t_B, schedule=policy.schedule, prediction_type=policy.prediction_type, key=key
        )

    def _loser(self, rollouts: Rollouts, batch: Batch, winner_KBCHW: Tensor, key: Key) -> Tensor:
        """The opponent's images, encoded with the posterior noise of the winners."""
        number_B = integers(key.on_host(), "loser", self.rounds.recipe.images_per_prompt).tolist()
        requests = [Request(*named) for named in zip(batch.prompts, number_B, strict=True)]
        mean_BCHW, std_BCHW = (
            sent(part.to(winner_KBCHW.dtype), winner_KBCHW.device) for part in rollouts.moments(requests)
        )
        if winner_KBCHW.shape != (1, *mean_BCHW.shape):
            raise ValueError(
                f"SelfPlay: latents of winners have the shape {tuple(winner_KBCHW.shape)}, those of "
                f"generated images {(1, *mean_BCHW.shape)}: data.resolution must be that of the images "
                "that the backbone generates"
            )
        return posterior(key, mean_BCHW[None], std_BCHW[None])
