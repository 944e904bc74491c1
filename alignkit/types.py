"""The values that travel through a training step.

Shape suffixes: K candidates of a prompt, best first; B prompts; N images; C H W; L tokens; D width; S
snapshots; T steps of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkit.devices import sent

# what a batch holds of each pair: both, winner first; the winner alone; or one of the two, by a fixed coin
Reads = Literal["pair", "winner", "either"]

# what a network may predict: the noise; alpha * noise - sigma * latent; noise - latent
PREDICTION_TYPES = ("epsilon", "v_prediction", "flow")


class PairRecord(NamedTuple):
    """One judgement, as a source gives it.

    Args:
        id: names the pair in its source, the same in every run.
        prompt: what both images were asked to show.
        image_0: an encoded image (JPEG, PNG, WebP).
        image_1: the other one; None where there is only a winner, then label_0 is 1.
        label_0: 1 where image 0 is preferred, 0 where image 1 is, between them where neither clearly is.
        user: who judged; empty if unknown.
    """

    id: int
    prompt: str
    image_0: bytes
    image_1: bytes | None
    label_0: float
    user: str = ""


class Moments(NamedTuple):
    """What an autoencoder says of images: a normal distribution of scaled latents, by mean and deviation."""

    mean_NCHW: Tensor
    std_NCHW: Tensor


class Batch(NamedTuple):
    """Candidates of B prompts, best first.

    Args:
        image_KBCHW: RGB in [-1, 1]; None where their latents were cached.
        prompts: one text per prompt.
        id_B: int64, names the prompt's record, the same in every run.
        visit_B: int64, how often the record was seen before.
        users: who judged, one per prompt.
        label_B: probability that the first candidate is the better one; of a single candidate, that it is
            liked. None: 1.
        frame_KB4: what was read of each original: its height and width, and top and left of the crop, after
            resizing, in pixels; int64. None: the whole of a picture of the batch's size.
        moments_KB: cached latents of the candidates, with K, B in place of N; None where pictures are read.
        ref_logp_KB: what the reference says of the candidates, where a bank knows; float32.
        host_B2: ids and visits, where the host reads them without waiting for a device; None: not kept.
    """

    image_KBCHW: Tensor | None
    prompts: tuple[str, ...]
    id_B: Tensor
    visit_B: Tensor
    users: tuple[str, ...] = ()
    label_B: Tensor | None = None
    frame_KB4: Tensor | None = None
    moments_KB: Moments | None = None
    ref_logp_KB: Tensor | None = None
    host_B2: NDArray[np.int64] | None = None

    def key(self, seed: int) -> Key:
        """Names the draws of its prompts."""
        return Key(seed, self.id_B, self.visit_B, self.host_B2)

    def at(self, places: Sequence[int]) -> Batch:
        """Some of its prompts, in the given order."""
        rows = list(places)
        image_KBCHW, label_B, frame_KB4 = self.image_KBCHW, self.label_B, self.frame_KB4
        ref_logp_KB = self.ref_logp_KB
        return Batch(
            image_KBCHW=None if image_KBCHW is None else image_KBCHW[:, rows],
            prompts=tuple(self.prompts[row] for row in rows),
            id_B=self.id_B[rows],
            visit_B=self.visit_B[rows],
            users=tuple(self.users[row] for row in rows) if self.users else (),
            label_B=None if label_B is None else label_B[rows],
            frame_KB4=None if frame_KB4 is None else frame_KB4[:, rows],
            moments_KB=None
            if self.moments_KB is None
            else Moments(*(part[:, rows] for part in self.moments_KB)),
            ref_logp_KB=None if ref_logp_KB is None else ref_logp_KB[:, rows],
            host_B2=None if self.host_B2 is None else self.host_B2[rows],
        )


class Text(NamedTuple):
    """What networks are told of prompts.

    Args:
        text_BLD: what the cross-attention reads.
        extras: further conditions a backbone needs, by its own names, prompts first.
    """

    text_BLD: Tensor
    extras: Mapping[str, Tensor] = {}  # a NamedTuple's default, never mutated


class PromptLimit(NamedTuple):
    """How much of a prompt a text encoder reads.

    Args:
        count: the length of a prompt.
        longest: the greatest that is read; what is longer is cut off.
        unit: what is counted.
    """

    count: Callable[[str], int]
    longest: int
    unit: str = "tokens"


class Encoded(NamedTuple):
    """A batch as the networks see it. Candidates of one prompt share the conditions.

    Args:
        latent_KBCHW: clean latents, scaled.
        text_BLD: what the cross-attention reads.
        extras: further conditions a backbone needs, by its own names, prompts first; what differs between the
            candidates of a prompt has K as its second dimension.
        mean_KBCHW: the latents without posterior noise, the same at every visit.
        prompts: what ``text_BLD`` says, empty where the caption was dropped.
        tokens_BLD: what a conditioner tells the policy besides; None tells nothing.
    """

    latent_KBCHW: Tensor
    text_BLD: Tensor
    extras: Mapping[str, Tensor] = {}  # a NamedTuple's default, never mutated
    mean_KBCHW: Tensor | None = None
    prompts: tuple[str, ...] = ()
    tokens_BLD: Tensor | None = None


class Schedule(NamedTuple):
    """The forward process ``x_t = alpha_t * x_0 + sigma_t * noise``, by step.

    Args:
        alpha_T: share of the clean latent, float32, falling; ``1 - sigma`` on the straight path of flow
            matching.
        sigma_T: share of the noise, float32, rising.
    """

    alpha_T: Tensor
    sigma_T: Tensor

    def levels(self, t_KB: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha`` and ``sigma`` of the given steps, on their device."""
        return sent(self.alpha_T, t_KB.device)[t_KB], sent(self.sigma_T, t_KB.device)[t_KB]


class Key(NamedTuple):
    """Names every random draw of a batch: see ``alignkit.noise``.

    Args:
        seed: the run's.
        id_B: of the records.
        visit_B: how often each was seen before.
        host_B2: both of them, as in ``Batch``.
    """

    seed: int
    id_B: Tensor
    visit_B: Tensor
    host_B2: NDArray[np.int64] | None = None

    def on_host(self) -> Key:
        """Names the same draws, for those that the host must know: it need not wait for a device."""
        if self.host_B2 is None:
            return self
        id_B, visit_B = torch.from_numpy(self.host_B2).unbind(1)
        return Key(self.seed, id_B, visit_B)


class Sample(Protocol):
    """What the networks are asked about."""

    @property
    def x_KBCHW(self) -> Tensor:
        """Inputs of the networks."""

    @property
    def t_KB(self) -> Tensor:
        """Steps of the schedule."""

    def logp(self, prediction_KBCHW: Tensor) -> Tensor:
        """Log-likelihood of what was drawn, up to a constant that both networks share; float32, (K, B)."""


class Noised(NamedTuple):
    """A point on a noising path, and what a perfect network would predict there."""

    x_KBCHW: Tensor
    t_KB: Tensor
    target_KBCHW: Tensor

    def logp(self, prediction_KBCHW: Tensor) -> Tensor:
        """Minus the squared error, *mean* over C, H, W, in float32."""
        # the one cast: in bfloat16 the error of an error is as large as the margins that the losses look at
        return -(prediction_KBCHW.float() - self.target_KBCHW.float()).square().mean((-3, -2, -1))


class Scored(NamedTuple):
    """How likely each candidate's sample is. Fields that no component asked for are None.

    Args:
        sample: what the networks were asked about.
        logp_KB: under the policy, with gradient.
        ref_logp_KB: under the reference, without.
        margin_B: what a weighting wants the objective's margin to be shifted by.
        snapshot_logp_SKB: under averages of the policy's weights, one per decay that a weighting named.
        step: optimizer steps done so far.
    """

    sample: Sample
    logp_KB: Tensor | None = None
    ref_logp_KB: Tensor | None = None
    margin_B: Tensor | None = None
    snapshot_logp_SKB: Tensor | None = None
    step: int = 0


class Weights(NamedTuple):
    """What a weighting says: a factor of each prompt's loss, a shift of its margin or None, and logs."""

    weight_B: Tensor
    margin_B: Tensor | None = None
    logs: Mapping[str, Tensor] = {}  # a NamedTuple's default, never mutated


class Loss(NamedTuple):
    """One number per prompt, and detached scalars to log."""

    loss_B: Tensor
    logs: Mapping[str, Tensor] = {}  # a NamedTuple's default, never mutated


def required(value: Tensor | None, owner: object, field: str) -> Tensor:
    """Returns a field of ``Scored`` that the owner's ``uses`` promises.

    Raises:
        ValueError: the field was not computed.
    """
    if value is None:
        name = type(owner).__name__
        raise ValueError(f"{name} reads {field}, which was not computed: add {field!r} to {name}.uses")
    return value


def mean_logs(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars, detached, as loggers want them."""
    return {name: torch.as_tensor(value).detach().float().mean() for name, value in logs.items()}
