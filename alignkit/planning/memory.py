"""What a step keeps in memory, by running it on tensors that have shapes and no values.

Shape suffixes: K candidates of a prompt, best first; B prompts; N images; C H W.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import Optimizer

from alignkit.averages import Snapshots
from alignkit.evaluation.drawing import DECODED
from alignkit.module import AlignModule
from alignkit.planning.tracking import LiveMemory, gpu_normalisation, storages, tensors_of
from alignkit.policy import BoundDenoiser, ReferenceDenoiser
from alignkit.rules import PRECISIONS
from alignkit.types import Batch, Encoded, Noised
from alignkit.weightless import stand_in

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Step(NamedTuple):
    """What decides how much memory a step takes, besides its networks.

    Args:
        resolution: side of the pictures, pixels.
        batch_size: prompts per device.
        read: pictures of each prompt that are encoded.
        candidates: pictures of each prompt that the networks are asked about.
        precision: the Trainer's, such as "bf16-mixed".
        accumulated: batches per optimizer step.
        clip: the Trainer's ``gradient_clip_val``.
        devices: how many train together.
        averages: averages of the trained weights that callbacks keep.
        drawn: pictures that are drawn at once, to look at or to judge; 0: none.
        cached: whether latents and prompts come from a cache.
        banked: whether a bank says what the reference says.
        on_gpu: whether it is for a GPU.
    """

    resolution: int
    batch_size: int
    read: int
    candidates: int
    precision: str
    accumulated: int
    clip: float | None
    devices: int = 1
    averages: int = 0
    drawn: int = 0
    cached: bool = False
    banked: bool = False
    on_gpu: bool = False


class Network(NamedTuple):
    """Number of weights of a network, and of those that are trained."""

    total: int
    trained: int


class Memory(NamedTuple):
    """Bytes on one device, of tensors alone.

    Args:
        networks: sizes, by part.
        parts: what stays: weights by network, gradients, optimizer states, averages.
        phases: the peak of each phase of a step, everything included.
        kept: what the forward pass keeps for the backward pass.
        shapes: of one latent, and of what is known of one prompt, by name.
    """

    networks: dict[str, Network]
    parts: dict[str, int]
    phases: dict[str, int]
    kept: int
    shapes: dict[str, tuple[int, ...]]

    @property
    def peak(self) -> int:
        """Most that is in use at once."""
        return max(self.phases.values())

    @property
    def passing(self) -> int:
        """What there is at the peak besides the parts that stay: activations and temporaries."""
        return max(0, self.peak - sum(self.parts.values()))


def memory(module: AlignModule, snapshots: Snapshots | None, optimizer: MakeOptimizer, step: Step) -> Memory:
    """Runs a step of a module that was built under ``torch.device("meta")``.

    Args:
        module: unconfigured.
        snapshots: averages that are scored, too.
        optimizer: builds the optimizer from a list of weights.
        step: the sizes.
    """
    backbone = module.backbone
    with torch.device("meta"):
        module.configure_model()
        if step.banked:
            module.reference = None
        frozen = dict(backbone.frozen())
    policy = module.policy
    assert policy is not None
    reference = None
    if module.reference is not None:
        with module.reference.network() as network:
            reference = network if network is not policy else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in filter(None, (policy, reference, *frozen.values())):
            stand_in(network)
        return _Run(module, snapshots, optimizer, step, reference, frozen).measured()


class _Run:
    """One step: encode, forward, backward, update, and what is alive meanwhile."""

    def __init__(
        self,
        module: AlignModule,
        snapshots: Snapshots | None,
        optimizer: MakeOptimizer,
        step: Step,
        reference: nn.Module | None,
        frozen: dict[str, nn.Module],
    ) -> None:
        assert module.policy is not None
        self.module, self.backbone, self.policy = module, module.backbone, module.policy
        self.snapshots, self.make_optimizer, self.step = snapshots, optimizer, step
        named = {"policy": module.policy, "reference": reference, **frozen}
        self.networks = {name: network for name, network in named.items() if network is not None}
        self.resident = {
            name: network for name, network in self.networks.items() if not (step.cached and name in frozen)
        }
        self.trained = [weight for weight in module.policy.parameters() if weight.requires_grad]
        self.phases: dict[str, int] = {}
        self.kept = 0
        self.shapes: dict[str, tuple[int, ...]] = {}

    def measured(self) -> Memory:
        weights = {name: storages(tensors_of(network)) for name, network in self.resident.items()}
        trained, copies = storages(self.trained), self.step.averages
        parts = {f"weights of {name}": size for name, size in weights.items()}
        parts["gradients"] = trained
        if self.step.devices > 1:  # DistributedDataParallel sends gradients in buckets of its own
            parts["gradients in transit"] = trained
        known = [tensor for network in self.networks.values() for tensor in tensors_of(network)]
        # what no operation below makes
        self.base = sum(weights.values()) + copies * trained + parts.get("gradients in transit", 0)
        with ExitStack() as stack:
            if self.step.on_gpu:
                stack.enter_context(gpu_normalisation())
            self.live = stack.enter_context(LiveMemory(known))
            parts["optimizer states"] = self._update()
            self._pass()
            if self.step.drawn:
                self._draw()
        copies += len(self.snapshots.averages) if self.snapshots else 0
        if copies:
            parts["averages of the weights"] = copies * trained
        counted = {name: _counted(network) for name, network in self.networks.items()}
        return Memory(counted, parts, self.phases, self.kept, self.shapes)

    def _ends(self, phase: str) -> None:
        self.phases[phase] = self.base + self.live.since()

    def _update(self) -> int:
        """The optimizer's step, first: its states are there in every later one. Returns their bytes."""
        for weight in self.trained:
            weight.grad = torch.empty_like(weight)
        if self.step.clip:
            torch.nn.utils.clip_grad_norm_(self.trained, self.step.clip)
        optimizer = self.make_optimizer(self.trained)
        for group in optimizer.param_groups:
            # torch's own choice on a GPU, where nothing else is asked for
            if self.step.on_gpu and group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True
        # one that asks for values has made its states before it does
        with suppress(DataDependentOutputException):
            optimizer.step()
        self._ends("update")
        self.optimizer = optimizer
        if self.step.accumulated == 1:
            optimizer.zero_grad()
        states = [value for state in optimizer.state.values() for value in state.values()]
        return storages(value for value in states if isinstance(value, Tensor))

    def _pass(self) -> None:
        """Encodes a batch, and runs the networks forward and backward."""
        with self._autocast():
            encoded, image_KBCHW = self._encoded()
            self._ends("encode")
            before = self.live.live
            shape = (self.step.candidates, self.step.batch_size)
            x_KBCHW = torch.empty(*shape, *encoded.latent_KBCHW.shape[2:])
            sample = Noised(x_KBCHW, torch.zeros(shape, dtype=torch.int64), torch.empty_like(x_KBCHW))
            logp_KB = sample.logp(self._bound(self.policy, encoded)(x_KBCHW, sample.t_KB))
            self.kept = self.live.live - before
            if self.module.reference is not None:
                reference = ReferenceDenoiser(self.backbone, self.module.reference, encoded)
                logp_KB = logp_KB - sample.logp(reference(x_KBCHW, sample.t_KB))
            if self.snapshots is not None:
                with torch.no_grad():
                    for network in self.snapshots.networks(self.policy):
                        self._bound(network, encoded)(x_KBCHW, sample.t_KB)
            loss = logp_KB.mean()
        self._ends("forward")
        loss.backward()
        self._ends("backward")
        del image_KBCHW  # alive until here

    @torch.no_grad()
    def _draw(self) -> None:
        """One step of guided sampling, and pictures from what it gives."""
        count = self.step.drawn
        with self._autocast():
            text_BLD, extras = self.backbone.encode_prompts(("",) * 2 * count, torch.device("cpu"))
            x_KBCHW = torch.empty(1, 2 * count, *self.shapes["latent"])
            encoded = Encoded(x_KBCHW, text_BLD, extras)
            t_KB = torch.zeros(1, 2 * count, dtype=torch.int64)
            self._bound(self.policy, encoded)(x_KBCHW, t_KB)
            self.backbone.decode(x_KBCHW[0, : min(count, DECODED)])
        self._ends("draw")

    def _bound(self, network: nn.Module, encoded: Encoded) -> BoundDenoiser:
        return BoundDenoiser(self.backbone, network, encoded)

    def _encoded(self) -> tuple[Encoded, Tensor]:
        """A batch as the networks see it, and its pictures, which stay as long as the step."""
        step = self.step
        image_KBCHW = torch.empty(step.read, step.batch_size, 3, step.resolution, step.resolution)
        prompts = ("",) * step.batch_size
        mean_NCHW = self.backbone.encode_images(image_KBCHW.flatten(0, 1)).mean_NCHW
        text_BLD, extras = self.backbone.encode_prompts(prompts, image_KBCHW.device)
        if step.cached:  # what was asked only for its shape
            self.live.since()
            image_KBCHW = image_KBCHW[:0].clone()
        latent_KBCHW = torch.empty(step.candidates, step.batch_size, *mean_NCHW.shape[1:])
        told = {"text": text_BLD, **extras}
        self.shapes = {
            "latent": tuple(mean_NCHW.shape[1:]),
            **{name: tuple(value.shape[1:]) for name, value in told.items()},
        }
        rows_B = torch.zeros(step.batch_size, dtype=torch.int64)
        seen = self.backbone.picture_conditions(Batch(None, prompts, rows_B, rows_B), latent_KBCHW)
        return Encoded(latent_KBCHW, text_BLD, {**extras, **seen}, mean_NCHW), image_KBCHW

    def _autocast(self) -> AbstractContextManager[object]:
        computed = getattr(torch, PRECISIONS.get(self.step.precision, "float32"))
        return torch.autocast("cpu", computed, enabled=computed != torch.float32)


def _counted(network: nn.Module) -> Network:
    sizes = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    return Network(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))
