"""Worker processes that read: what each is reading, and what is said when one fails, dies or hangs."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

NOBODY = -1
_KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
_TIMEOUT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
_RAISED = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.")


class Reading(Dataset[Any]):
    """A data set that notes what each worker process is reading.

    Args:
        dataset: what is read.
        num_workers: number of worker processes.
        named: what messages call a record, by its index.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int, named: Callable[[int], str]) -> None:
        self.dataset, self._named = dataset, named
        # process and index of each
        self._now_W2 = torch.full((num_workers, 2), NOBODY, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> Any:
        """Reads records as the data set does, each by itself or all at once."""
        if hasattr(self.dataset, "__getitems__"):
            self._note(places[0][0])
            found = self.dataset.__getitems__(places)
        else:
            found = [self._read(place) for place in places]
        self._note(NOBODY)
        return found

    def _read(self, place: tuple[int, int]) -> Any:
        self._note(place[0])
        try:
            return self.dataset[place]
        except ValueError:  # names the record itself
            raise
        except Exception as error:
            error.add_note(f"while {self._named(place[0])} was read")
            raise

    def _note(self, index: int) -> None:
        if (worker := get_worker_info()) is not None:
            self._now_W2[worker.id] = torch.tensor([os.getpid(), index])

    def explained(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, and errors in words.

        Raises:
            ValueError: a worker process refused a record.
            RuntimeError: one died, or hangs.
        """
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                self._explain(error)
                raise
            yield batch

    def _explain(self, error: Exception) -> None:
        text = str(error)
        if match := _KILLED.match(text):
            pids = [int(pid) for pid in match[1].split(",")]
            raise RuntimeError(f"{self._who(pids)} {match[2]}") from error
        if match := _TIMEOUT.match(text):
            hanging = self._busy()
            for pid in hanging:
                _kill(pid)
            who = self._who(hanging)
            raise RuntimeError(f"{who} gave no batch for {match[1]} s (data.worker_timeout)") from error
        if (match := _RAISED.match(text)) and isinstance(error, ValueError):
            raise ValueError(text.rpartition(f"\n{match[1]}: ")[2].rstrip() or text) from error

    def _busy(self) -> list[int]:
        return [int(pid) for pid, index in self._now_W2.tolist() if index != NOBODY]

    def _who(self, pids: Sequence[int]) -> str:
        """The worker processes, and what they were reading."""
        at = {pid: index for pid, index in self._now_W2.tolist() if index != NOBODY}
        told = [f"{pid} (reading {self._named(at[pid])})" if pid in at else str(pid) for pid in pids]
        return f"data.num_workers: worker process {', '.join(told) or 'unknown'}"


def _kill(pid: int) -> None:
    """Kills a worker process that hangs: this process would wait for it when it ends."""
    with suppress(RuntimeError):  # which PyTorch raises here when it hears of it
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)


class NamingLoader(DataLoader[Any]):
    """A loader whose errors name the worker process and the record.

    Args:
        dataset: what is loaded.
        named: what messages call a record, by its index.
        worker_timeout: seconds in which a batch must come from worker processes.
        num_workers: number of these processes.
        **options: further arguments of ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        named: Callable[[int], str] = str,
        worker_timeout: float = 300.0,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        timeout = worker_timeout if num_workers else 0
        super().__init__(
            Reading(dataset, num_workers, named), num_workers=num_workers, timeout=timeout, **options
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.dataset, Reading)
        return self.dataset.explained(super().__iter__())
