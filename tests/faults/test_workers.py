"""A process that reads pairs refuses one, dies or hangs: the run ends, and names process and pair."""

import os
import re
import signal
import time

import pytest

from alignkit.data import AlignData
from alignkit.testing import ToyPairs
from alignkit.types import PairRecord

SOON = 30


class FaultyPairs(ToyPairs):
    """Toy pairs, of which reading one does something to the process that reads it."""

    def __init__(self, how: str) -> None:
        super().__init__(20)
        self.how = how

    def __getitem__(self, index: int) -> PairRecord:
        if index == 3:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.how == "hang":
                time.sleep(1000)
            if self.how == "raise":
                raise TypeError("a fault of the source")
            if self.how == "refuse":
                return super().__getitem__(index)._replace(image_0=b"no picture")
        return super().__getitem__(index)


def read_all(how: str, num_workers: int = 1) -> list[int]:
    """Reads the pairs of an epoch; their ids, sorted."""
    data = AlignData(
        FaultyPairs(how),
        batch_size=4,
        resolution=16,
        num_workers=num_workers,
        max_unreadable=0,
        worker_timeout=3,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    return sorted(number for batch in loader for number in batch.id_B.tolist())


# PyTorch raises from a signal's handler: what it happened to do is left undone
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        # what PyTorch notices first
        (
            "kill",
            r"worker process \d+ \(reading pair 1003\) (is killed by signal: Killed|exited unexpectedly)",
        ),
        ("hang", r"worker process \d+ \(reading pair 1003\) gave no batch for 3 s \(data.worker_timeout\)"),
        ("stop", r"worker process \d+ \(reading pair 1003\) gave no batch for 3 s \(data.worker_timeout\)"),
    ],
)
def test_a_process_that_dies_or_hangs_is_named_with_what_it_read(how: str, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=f"^data.num_workers: {said}"):
        read_all(how)
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pair_that_is_refused_is_told_alike_by_any_process(num_workers: int) -> None:
    with pytest.raises(ValueError, match=r"^AlignData: 1 of 16 pairs cannot be read so far") as caught:
        read_all("refuse", num_workers)
    assert re.search(r"^pair 1003: [^\n]+\Z", str(caught.value), re.MULTILINE)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_source_names_the_pair(num_workers: int) -> None:
    with pytest.raises(TypeError) as caught:
        read_all("raise", num_workers)
    notes = "\n".join(getattr(caught.value, "__notes__", []))
    assert "while pair 1003 was read" in f"{caught.value}{notes}"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_without_faults_all_are_read(num_workers: int) -> None:
    assert read_all("none", num_workers) == [1000 + number for number in range(20) if number % 5 != 4]
