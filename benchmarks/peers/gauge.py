"""Times steps on a device, and counts what makes the host wait for it."""

import inspect
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MIB, GIB = 2**20, 2**30
# what reads a tensor's values on the host, whatever device it is on
READS = frozenset(
    {
        Tensor.item,
        Tensor.tolist,
        Tensor.cpu,
        Tensor.numpy,
        Tensor.__bool__,
        Tensor.__float__,
        Tensor.__int__,
        Tensor.__index__,
        Tensor.nonzero,
        torch.nonzero,
    }
)
SYNC = "called a synchronizing CUDA operation"
# they are about tensors that are on the host anyway: what is read of files, and counts of an optimizer
ON_HOST = ("alignkit/data/", "torch/optim/")
ROOT = Path(__file__).parents[2]
TORCH = str(Path(torch.__file__).parent)
PASSING_ON = ("warnings.py", "apply_func.py", "connectors/logger_connector/result.py")


class Measured(NamedTuple):
    """What was found of a contestant.

    Args:
        milliseconds: of its steps.
        first: which the first of these is.
        gib: the most memory that its tensors took in these; of the process, on a CPU.
        waits: where the host waited for the device in another step, and how often.
    """

    milliseconds: tuple[float, ...]
    first: int
    gib: float
    waits: Mapping[str, int]

    def each(self, accumulated: int, here: int) -> float:
        """Milliseconds of a micro-step, and of its share of an update.

        Args:
            accumulated: micro-steps of an update as it is to be counted.
            here: the same as it was run.
        """
        if here == 1:
            return median(self.milliseconds)
        with_update, without = [], []
        for place, value in enumerate(self.milliseconds, self.first + 1):
            (without if place % here else with_update).append(value)
        return median(without) + (median(with_update) - median(without)) / accumulated


class Plan(NamedTuple):
    """How a contestant is measured.

    Args:
        device: where.
        warm_up: steps that do not count.
        steps: steps that do.
        seconds: after so many, ``least`` steps are enough.
        least: those.
    """

    device: torch.device
    warm_up: int = 3
    steps: int = 30
    seconds: float = 25.0
    least: int = 10


class Gauge:
    """Is asked for a turn before each step, as ``Turns``: times them, then counts the waits of one more.

    Args:
        plan: how.
        done: told what was found; does not return.
    """

    def __init__(self, plan: Plan, done: Callable[[Measured], None]) -> None:
        self._plan, self._done, self._clock = plan, done, Clock(plan.device)
        self._waits = Waits(plan.device)
        self._count, self._since = 0, 0.0

    def next(self, loss: Tensor | float, policy: nn.Module | None) -> None:
        """Notes that a step ends here, and another begins."""
        plan = self._plan
        if self._waits.counts:
            self._waits.stop()
            times = tuple(self._clock.milliseconds())
            self._done(Measured(times, plan.warm_up, most_memory(plan.device), self._waits.found))
        if self._count == plan.warm_up:
            synchronize(plan.device)
            if plan.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self._since = time.monotonic()
        if self._count >= plan.warm_up:
            self._clock.mark()
        self._count += 1
        timed = self._count - plan.warm_up - 1
        is_late = timed >= plan.least and time.monotonic() - self._since > plan.seconds
        if timed >= plan.steps or is_late:
            self._waits.start()


class Clock:
    """Times between marks, by the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks = device, []

    def mark(self) -> None:
        """Notes the time at which the device gets here."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """From each mark to the next."""
        synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type == "cuda":
            return [a.elapsed_time(b) for a, b in pairs]
        return [1e3 * (b - a) for a, b in pairs]


class Waits:
    """Counts what makes the host wait for the device.

    On CUDA, what PyTorch's own watch says of it (``torch.cuda.set_sync_debug_mode``). On a CPU, where nothing
    waits, calls that read a tensor's values: some of what would wait on a GPU, without copies to it.

    Attributes:
        counts: whether it does.
        found: where, and how often.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.counts = device, False
        self.found: Counter[str] = Counter()
        self._stack = ExitStack()

    def start(self) -> None:
        """Begins."""
        self.counts = True
        if self._device.type != "cuda":
            self._stack.enter_context(Reads(self.found))
            return
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.showwarning = self._heard
        torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        """Ends."""
        if self._device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        self._stack.close()
        self.counts = False

    def _heard(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if SYNC in str(message):
            self.found[_place() or "files that are read"] += 1


class Reads(TorchFunctionMode):
    """Counts what reads a tensor's values, by place.

    Args:
        found: what it adds to.
    """

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS and (place := _place()):
            self.found[place] += 1
        return function(*args, **(kwargs or {}))


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def most_memory(device: torch.device) -> float:
    """GiB that tensors took at most; of a CPU, what the process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def _place() -> str:
    """Who asked: the nearest line that is neither of this file nor of PyTorch, nor of what only passes on.

    Empty where it is about tensors that are on the host anyway.
    """
    for frame, line in traceback.walk_stack(inspect.currentframe()):
        path = frame.f_code.co_filename
        if any(part in path for part in ON_HOST):
            return ""
        if path != __file__ and not path.startswith(TORCH) and not path.endswith(PASSING_ON):
            place = Path(path)
            near = place.relative_to(ROOT) if place.is_relative_to(ROOT) else Path(*place.parts[-3:])
            return f"{near}:{line}"
    return "?"
