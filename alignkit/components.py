"""The abstract bases of everything pluggable: contracts in docstrings, and what every backbone does alike.

Shape suffixes: K candidates of a prompt, best first; B prompts; N images; C H W; L tokens; D width.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from alignkit.devices import sent
from alignkit.noise import bernoulli, posterior
from alignkit.types import (
    Batch,
    Encoded,
    Key,
    Loss,
    Moments,
    PairRecord,
    PromptLimit,
    Reads,
    Sample,
    Schedule,
    Scored,
    Text,
    Weights,
)

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from alignkit.evaluation.results import Prompt
    from alignkit.policy import LoRA


class Component(nn.Module, ABC):
    """What a training step is made of."""

    def callbacks(self) -> Sequence[Callback]:
        """What it needs of the Trainer, time or files: the same callbacks at every call."""
        return ()


class Objective(Component):
    """A loss over the scored candidates of a prompt.

    Class attributes:
        uses: which fields of ``Scored`` it reads: any of "logp", "ref_logp". Only those are computed.
        reads: what it wants of each pair: "pair", both candidates; "winner"; or "either", one of the two
            with ``Batch.label_B``.
    """

    uses: ClassVar[frozenset[str]]
    reads: ClassVar[Reads] = "pair"

    @abstractmethod
    def forward(self, scored: Scored, batch: Batch) -> Loss:
        """Returns one loss per prompt, not reduced, and detached scalars to log."""

    @abstractmethod
    def initial_loss(self) -> float | None:
        """The loss of every prompt while the policy equals the reference; None if it depends on the data."""


class Weighting(Component):
    """How much each prompt's loss counts, and by how much its margin is shifted.

    Class attributes:
        uses: fields of ``Scored`` that it reads, as in ``Objective``; the objective must have them computed.

    Attributes:
        snapshots: decays of exponential averages of the trainable weights, each in (0, 1); the step scores
            the batch under each, as ``Scored.snapshot_logp_SKB``.
    """

    uses: ClassVar[frozenset[str]] = frozenset()
    snapshots: tuple[float, ...] = ()

    @abstractmethod
    def forward(self, scored: Scored, batch: Batch) -> Weights:
        """Returns weights >= 0, without gradient.

        Statistics over prompts are those of all processes: see ``alignkit.distributed.gathered``.
        """


class Denoiser(ABC):
    """A network bound to a batch's conditions: what a sampler may ask."""

    schedule: Schedule
    prediction_type: str

    @abstractmethod
    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        """Predicts noise or velocity, as ``prediction_type`` says, at steps ``t_KB`` of the schedule."""

    @abstractmethod
    def unconditional(self) -> Denoiser:
        """The same network, told the empty prompt and nothing besides."""


class Sampler(Component):
    """Which points, on which path to each candidate, the networks are asked about.

    Class attributes:
        reads: what it wants of each training pair where that is not what the objective wants: a sampler that
            makes losers itself reads "winner".
        asks_reference: whether it cannot do without a reference.
        fixed: whether its samples follow from batch and key alone, whatever the networks are; then what the
            reference says of them can be kept.

    Attributes:
        renews: whether it has the reference take later weights of the policy.
    """

    reads: ClassVar[Reads | None] = None
    asks_reference: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    renews: bool = False

    @abstractmethod
    def forward(
        self, batch: Batch, encoded: Encoded, policy: Denoiser, reference: Denoiser | None, *, key: Key
    ) -> Sample:
        """Draws a sample, the same for the same key."""


class Conditioner(Component):
    """What the policy is told besides the prompt, as tokens that the policy alone reads.

    Tokens that are all zero tell nothing: the policy then is its base, exactly.
    """

    @abstractmethod
    def attach(self, network: nn.Module) -> None:
        """Makes room for its tokens in the network and says, by ``requires_grad``, what is trained."""

    @abstractmethod
    def forward(self, batch: Batch, *, key: Key) -> Tensor:
        """Returns the tokens of each prompt, (B, L, D); every draw comes from the key."""

    @abstractmethod
    def audiences(self) -> Mapping[str, Tensor]:
        """Tokens, (U, L, D), of those for whom held-out images are drawn and judged, by audience.

        Prompt number p is drawn for person p modulo U of an audience.
        """

    @abstractmethod
    def add_options(self, parser: argparse._ArgumentGroup) -> None:
        """Adds to ``alignkit generate`` what says for whom a picture is drawn."""

    @abstractmethod
    def chosen(self, options: argparse.Namespace) -> Tensor:
        """Tokens, (L, D), of whom those options name."""

    @abstractmethod
    def save(self, network: nn.Module, folder: Path) -> None:
        """Writes what was trained, and what it needs to make tokens."""

    @abstractmethod
    def load(self, network: nn.Module, folder: Path) -> None:
        """Reads back what ``save`` wrote, into a network that it is attached to."""


class Backbone(nn.Module, ABC):
    """A text-to-image model: all that knows a network's argument names and its autoencoder's scale.

    Where ``alignkit.weightless.is_weightless`` says so, it builds networks from their configs and reads no
    weights: their memory is being planned.

    Class attributes:
        reads_tokens: whether its networks have a place for a conditioner's tokens.

    Attributes:
        schedule: its forward process.
        prediction_type: what its networks predict, one of ``alignkit.types.PREDICTION_TYPES``.
        solver: the sampling method of ``generate``, for the record.
        caption_dropout: share of visits at which ``encode`` shows the whole pair the empty prompt.
        texts: conditions of prompts that were encoded before, by prompt; then those are all that there are,
            and no text encoder is needed.
        lora: adapters that ``build_policy`` adds, and then trains alone; None: it trains the weights.
        frozen_dtype: how weights that are not trained are held: "float32", or the type that mixed precision
            computes in, "bfloat16" or "float16".
    """

    reads_tokens: ClassVar[bool] = True
    schedule: Schedule
    prediction_type: str
    solver: str = "DDIM"
    caption_dropout: float = 0.0
    texts: Mapping[str, Text] | None = None
    lora: LoRA | None = None
    frozen_dtype: str = "float32"

    @torch.no_grad()
    def encode(self, batch: Batch, *, key: Key) -> Encoded:
        """Encodes images and prompts without gradient; every draw comes from the key.

        Raises:
            ValueError: a batch without pictures and without cached latents.
        """
        device = key.id_B.device
        dropped = bernoulli(key.on_host(), "caption_dropout", self.caption_dropout).tolist()
        prompts = tuple("" if drop else prompt for drop, prompt in zip(dropped, batch.prompts, strict=True))
        if batch.moments_KB is not None:
            mean_KBCHW, std_KBCHW = batch.moments_KB
        elif batch.image_KBCHW is not None:
            shape = batch.image_KBCHW.shape[:2]
            moments = self.encode_images(batch.image_KBCHW.flatten(0, 1))
            mean_KBCHW, std_KBCHW = (part.unflatten(0, shape) for part in moments)
        else:
            raise ValueError(
                f"{type(self).__name__}: a batch needs pictures, or latents of a cache; has neither"
            )
        text_BLD, extras = self.conditions(prompts, device)
        latent_KBCHW = posterior(key, mean_KBCHW, std_KBCHW)
        extras = {**extras, **self.picture_conditions(batch, latent_KBCHW)}
        return Encoded(latent_KBCHW, text_BLD, extras, mean_KBCHW, prompts)

    def conditions(self, prompts: Sequence[str], device: torch.device) -> Text:
        """``encode_prompts``, or what ``texts`` kept of it.

        Raises:
            ValueError: a prompt is not among those that were kept.
        """
        if self.texts is None:
            return self.encode_prompts(prompts, device)
        if unknown := [prompt for prompt in prompts if prompt not in self.texts]:
            raise ValueError(
                f"{type(self).__name__}: the prompt {unknown[0]!r} is not in the cache, which holds those of "
                "the training and the held-out pairs; leave data.cache out, or cache a config that has it"
            )
        kept = [self.texts[prompt] for prompt in prompts]
        text_BLD = sent(torch.cat([text.text_BLD for text in kept]), device)
        extras = {
            name: sent(torch.cat([text.extras[name] for text in kept]), device) for name in kept[0].extras
        }
        return Text(text_BLD, extras)

    def prompt_limit(self) -> PromptLimit | None:
        """How much of a prompt is read, told without loading a network; None if it cannot be."""
        return None

    def picture_conditions(self, batch: Batch, latent_KBCHW: Tensor) -> Mapping[str, Tensor]:
        """Entries of ``Encoded.extras`` that come from the pictures of a batch and not from its prompts."""
        return {}

    def encoder_hashes(self) -> Mapping[str, str]:
        """What latents and texts depend on besides pictures and prompts: a hash of each part, by its name.

        Without loading any weights. Parts whose hashes are the same encode alike.

        Raises:
            ValueError: this backbone does not say; then nothing of it can be cached.
        """
        raise ValueError(
            f"{type(self).__name__}: cannot be cached: it does not say what its latents and texts depend on "
            "(alignkit.Backbone.encoder_hashes)"
        )

    def origins(self) -> Mapping[str, str]:
        """Where it comes from, for a record: hub ids or paths, and commits; by names."""
        return {}

    def drawing_settings(self, network: nn.Module) -> Mapping[str, str]:
        """What the pictures of a network depend on besides weights, ``encoder_hashes`` and the schedule.

        By name: other settings of the sampling method, the network's own, in what type it is run. Pictures
        are kept under a hash of it, so what is left out here is not drawn anew when it changes.
        """
        return {}

    @abstractmethod
    def encode_images(self, image_NCHW: Tensor) -> Moments:
        """Encodes images in [-1, 1] into scaled latents, draws nothing."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], device: torch.device) -> Text:
        """Encodes prompts, without gradient."""

    def frozen(self) -> Mapping[str, nn.Module]:
        """What it runs besides the policy and never trains, by part: autoencoder, text encoders."""
        return {}

    def release(self) -> None:
        """Makes room for another model: what it runs besides networks leaves the GPU until it is asked."""

    @abstractmethod
    def decode(self, latent_NCHW: Tensor) -> Tensor:
        """Decodes scaled latents into images in [0, 1]."""

    @abstractmethod
    def build_policy(self) -> nn.Module:
        """Loads the network that is trained; ``requires_grad`` says which weights."""

    @abstractmethod
    def build_reference(self, policy: nn.Module) -> nn.Module:
        """Returns a network of its own that equals the policy as it is now."""

    @abstractmethod
    def predict(self, network: nn.Module, x_KBCHW: Tensor, t_KB: Tensor, encoded: Encoded) -> Tensor:
        """Runs a network once over all candidates of all prompts."""

    @abstractmethod
    def generate(
        self,
        network: nn.Module,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        num_steps: int,
        guidance: float,
        tokens_NLD: Tensor | None = None,
    ) -> Tensor:
        """Draws one scaled latent per prompt, (N, C, H, W), for ``decode``.

        Its noise depends on its own seed alone. Guidance 1 runs the network on the prompt only.
        ``tokens_NLD`` are a conditioner's, for the prompted half of a guided step.
        """

    @abstractmethod
    def save(self, network: nn.Module, folder: Path) -> None:
        """Writes the network where the library that it came from can load it."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """Reads back what ``save`` wrote, to generate with."""


class Reference(ABC):
    """Against whom the policy is trained.

    Lives outside the module tree: no checkpoint, optimizer or DDP sees it.

    Class attributes:
        needs: what of the policy it switches off, "lora" or "conditioner"; None: nothing.
        renewable: whether it can take later weights of the policy.
    """

    needs: ClassVar[Literal["lora", "conditioner"] | None] = None
    renewable: ClassVar[bool] = True

    @abstractmethod
    def attach(self, backbone: Backbone, policy: nn.Module) -> None:
        """Takes the policy as it is before the first step."""

    @abstractmethod
    def network(self) -> AbstractContextManager[nn.Module]:
        """The reference, within a ``with`` block; leave it before the backward pass."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of its weights: the identity that checkpoints carry."""

    @abstractmethod
    def renew(self) -> None:
        """Takes the policy as it is now, for methods that go on in rounds.

        Raises:
            ValueError: it cannot.
        """

    def released(self) -> Reference:
        """What takes its place once nobody asks it any more: itself, unless that frees memory."""
        return self

    @property
    @abstractmethod
    def is_base(self) -> bool:
        """Whether it still is what the policy started from."""


class PairSource(ABC):
    """A sequence of preference pairs. All but the pictures can be read without touching one.

    A picture that cannot be read is a ``ValueError`` or ``OSError`` of ``__getitem__`` that names it.
    """

    @property
    def winners_only(self) -> bool:
        """Whether no pair has a loser: ``image_1`` is None and ``label_0`` 1 in every record."""
        return False

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs."""

    @abstractmethod
    def __getitem__(self, index: int) -> PairRecord:
        """Reads one pair; the same index gives the same record in every run."""

    @abstractmethod
    def labels(self) -> Sequence[float]:
        """``label_0`` of every pair, in order."""

    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """The prompt of every pair, in order."""

    @abstractmethod
    def users(self) -> Sequence[str]:
        """Who judged every pair, in order; empty where unknown."""

    @abstractmethod
    def ids(self) -> Sequence[int]:
        """The id of every pair, in order."""


class Measure(nn.Module, ABC):
    """What rewards and features have in common: a record tells where they come from."""

    def origins(self) -> Mapping[str, str]:
        """Where its weights come from, for a record: hub ids or paths, commits, hashes of files; by names.

        Scores that are kept count again while this, the settings and the module of the class are the same.
        """
        return {}

    @final
    def provenance(self) -> dict[str, str]:
        """What a record says of it: its class, the distribution that brings it, and its ``origins``."""
        found = type(self)
        told = {"class": f"{found.__module__}.{found.__qualname__}"}
        for name in packages_distributions().get(found.__module__.partition(".")[0], ())[:1]:
            told["distribution"] = f"{name} {version(name)}"
        return {**told, **self.origins()}


class Reward(Measure):
    """A score of single images.

    Class attributes:
        differentiable: whether gradients reach the image.
    """

    differentiable: ClassVar[bool]

    @abstractmethod
    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores images in [0, 1] that were made for the prompts; (N,), higher is better."""


class Features(Measure):
    """What a network sees in images: embeddings whose distances say how different images look."""

    @abstractmethod
    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Embeds images in [0, 1] of any size, (N, D), each of length 1."""


class PromptSuite(ABC):
    """Prompts that models are evaluated on.

    Class attributes:
        known_count: how many it is known to have; None: any number.
    """

    known_count: ClassVar[int | None] = None

    @abstractmethod
    def prompts(self) -> Sequence[Prompt]:
        """The prompts in their order; empty ones and those that come again are left to whoever asks.

        Raises:
            ValueError: they cannot be read.
        """

    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """The files that they stand in, by name, for a record of their hashes; empty where there are none."""
