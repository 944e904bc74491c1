"""The abstract bases of everything pluggable: contracts in docstrings, no code.

Shape suffixes: K candidates of a prompt, best first; B prompts; N images; C H W.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from alignkit.types import Batch, Encoded, Key, Loss, PairRecord, Sample, Schedule, Scored, Weights


class Objective(nn.Module, ABC):
    """A loss over the scored candidates of a prompt.

    Class attributes:
        uses: which fields of ``Scored`` it reads: any of "logp", "ref_logp". Only those are computed.
        candidates: how many candidates of a prompt it compares.
    """

    uses: ClassVar[frozenset[str]]
    candidates: ClassVar[int]

    @abstractmethod
    def forward(self, scored: Scored, batch: Batch) -> Loss:
        """Returns one loss per prompt, not reduced, and detached scalars to log."""

    @abstractmethod
    def initial_loss(self) -> float | None:
        """The loss of every prompt while the policy equals the reference; None if it depends on the data."""


class Weighting(nn.Module, ABC):
    """How much each prompt's loss counts, and by how much its margin is shifted."""

    @abstractmethod
    def forward(self, scored: Scored, batch: Batch, score: Callable[[nn.Module], Tensor]) -> Weights:
        """Returns weights >= 0.

        ``score(network)`` gives the batch's ``logp_KB`` under another network, without gradient.
        """


class Denoiser(ABC):
    """A network bound to a batch's conditions: what a sampler may ask."""

    schedule: Schedule
    prediction_type: str

    @abstractmethod
    def __call__(self, x_KBCHW: Tensor, t_KB: Tensor) -> Tensor:
        """Predicts noise or velocity, as ``prediction_type`` says, at steps ``t_KB`` of the schedule."""


class Sampler(nn.Module, ABC):
    """Which points, on which path to each candidate, the networks are asked about."""

    @abstractmethod
    def forward(self, encoded: Encoded, policy: Denoiser, reference: Denoiser | None, *, key: Key) -> Sample:
        """Draws a sample, the same for the same key."""


class Conditioner(nn.Module, ABC):
    """What the policy is told besides the prompt."""

    @abstractmethod
    def attach(self, network: nn.Module) -> None:
        """Makes room for its tokens in the policy and says, by ``requires_grad``, what is trained."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Returns the tokens of each prompt, (B, L, D)."""


class Backbone(nn.Module, ABC):
    """A text-to-image model: all that knows a network's argument names and its autoencoder's scale.

    Attributes:
        schedule: its forward process.
        prediction_type: "epsilon" or "v_prediction".
    """

    schedule: Schedule
    prediction_type: str

    @abstractmethod
    def encode(self, batch: Batch, *, key: Key) -> Encoded:
        """Encodes images and prompts without gradient; every draw comes from the key."""

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
    ) -> Tensor:
        """Draws one image in [0, 1] per prompt, (N, C, H, W); its noise depends on its own seed alone."""

    @abstractmethod
    def save(self, network: nn.Module, folder: Path) -> None:
        """Writes the network where the library that it came from can load it."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """Reads back what ``save`` wrote, to generate with."""


class Reference(ABC):
    """Against whom the policy is trained.

    Lives outside the module tree: no checkpoint, optimizer or DDP sees it.
    """

    @abstractmethod
    def attach(self, backbone: Backbone, policy: nn.Module) -> None:
        """Takes the policy as it is before the first step."""

    @abstractmethod
    def network(self) -> AbstractContextManager[nn.Module]:
        """The reference, within a ``with`` block; leave it before the backward pass."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of its weights: the identity that checkpoints carry."""


class PairSource(ABC):
    """A sequence of preference pairs. Labels and prompts can be read without touching a picture."""

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


class Reward(nn.Module, ABC):
    """A score of single images.

    Class attributes:
        differentiable: whether gradients reach the image.
    """

    differentiable: ClassVar[bool]

    @abstractmethod
    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores images in [0, 1] that were made for the prompts; (N,), higher is better."""
