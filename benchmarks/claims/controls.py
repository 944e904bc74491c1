"""Controls that would refute a claim: a method without what is said to make it work. Suffix: B prompts."""

import torch

from alignkit.noise import uniform
from alignkit.types import Batch, Key, Scored, Weights
from alignkit_adaptive_dpo.weighting import MinorityAware


class ShuffledMinority(MinorityAware):
    """The same weights and margins, each given to another pair of the batch."""

    def forward(self, scored: Scored, batch: Batch) -> Weights:
        weights = super().forward(scored, batch)
        key = Key(0, batch.id_B, torch.full_like(batch.id_B, scored.step))
        order_B = uniform(key, "shuffled minority")[:, 0].argsort().to(weights.weight_B.device)
        margin_B = weights.margin_B if weights.margin_B is None else weights.margin_B[order_B]
        return weights._replace(weight_B=weights.weight_B[order_B], margin_B=margin_B)
