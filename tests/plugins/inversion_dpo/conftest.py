"""A toy policy and its reference, asked as the training step asks. K = 2 candidates, B prompts."""

import torch
from torch import Tensor

from alignkit import Batch, Denoiser, Key, Sampler
from alignkit.functional import bradley_terry_nll, preference_logit
from alignkit.policy import BoundDenoiser, FrozenCopy, ReferenceDenoiser
from alignkit.testing import ToyBackbone, toy_batch
from alignkit_inversion_dpo.sampler import PathPoints

# of the toy's schedule of 50 steps
NUM_STEPS, GAP = 10, 5


class Counting(Denoiser):
    """Counts how many latents another denoiser is asked about, and at which steps."""

    def __init__(self, inner: Denoiser) -> None:
        self.schedule, self.prediction_type = inner.schedule, inner.prediction_type
        self.inner, self.asked, self.steps = inner, 0, []
        self.without_prompt: Counting | None = None

    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        self.asked += t_KB.numel()
        self.steps.append(t_KB.unique().tolist())
        return self.inner(x_KBCHW, t_KB)

    def unconditional(self) -> "Counting":
        self.without_prompt = Counting(self.inner.unconditional())
        return self.without_prompt

    def fingerprint(self) -> str:
        return self.inner.fingerprint()  # type: ignore[attr-defined]


class Step:
    """A toy policy that may have left its reference, asked as the training step asks.

    Args:
        batch: what it is asked about.
        left: how far the policy has left its reference.
    """

    def __init__(self, batch: Batch | None = None, left: float = 0.0) -> None:
        self.backbone, self.batch = ToyBackbone(), batch or toy_batch(4)
        self.network, frozen = self.backbone.build_policy(), FrozenCopy()
        frozen.attach(self.backbone, self.network)
        with torch.no_grad():
            for weight in self.network.parameters():
                weight.add_(left * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))
        self.key = Key(0, self.batch.id_B, self.batch.visit_B)
        self.encoded = self.backbone.encode(self.batch, key=self.key)
        self.policy = BoundDenoiser(self.backbone, self.network, self.encoded)
        self.reference = Counting(ReferenceDenoiser(self.backbone, frozen, self.encoded))

    def draw(self, sampler: Sampler) -> PathPoints:
        points = sampler(self.batch, self.encoded, self.policy, self.reference, key=self.key)
        assert isinstance(points, PathPoints)
        return points

    def logit(self, points: PathPoints, beta: float = 100.0) -> Tensor:
        logp_KB = points.logp(self.policy(points.x_KBCHW, points.t_KB))
        ref_logp_KB = points.logp(self.reference(points.x_KBCHW, points.t_KB))
        return preference_logit(logp_KB, ref_logp_KB, beta=beta)

    def gradient(self, logit_B: Tensor) -> Tensor:
        loss = bradley_terry_nll(logit_B).mean()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, self.network.parameters())])
