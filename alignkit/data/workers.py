"""Worker processes that read: what each is reading, and what is said when one fails, dies or hangs."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

NOBODY = -1
_KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
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

    def explained(self, batches: Iterator[Any], timeout: float) -> Iterator[Any]:
        """The batches, and errors in words.

        Args:
            batches: what worker processes, or this one, give.
            timeout: seconds that a batch of worker processes may take.

        Raises:
            ValueError: a worker process refused a record.
            RuntimeError: one died, or hangs.
        """
        while True:
            hanging: list[int] = []
            # PyTorch's own limit does not cover a worker that hangs while it hands over what it read
            timer = threading.Timer(timeout, self._kill, (hanging,))
            timer.daemon = True
            if len(self._now_W2):
                timer.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if hanging:
                    with suppress(RuntimeError):  # PyTorch raises it at any time, when it hears of their end
                        time.sleep(0.5)
                    said = f"gave no batch for {timeout:g} s (data.worker_timeout)"
                    raise RuntimeError(f"{self._who(hanging)} {said}") from error
                told: Exception = error
                try:
                    if isinstance(error, OSError | EOFError | RuntimeError) and len(self._now_W2):
                        time.sleep(0.5)  # until PyTorch hears of a worker's end, and raises it wherever it is
                except RuntimeError as heard:
                    told = heard
                self._explain(told)
                raise
            finally:
                timer.cancel()
            yield batch

    def _explain(self, error: Exception) -> None:
        text = str(error)
        if match := _KILLED.match(text):
            pids = [int(pid) for pid in match[1].split(",")]
            raise RuntimeError(f"{self._who(pids)} {match[2]}") from error
        # where it handed over what it had read
        if isinstance(error, OSError | EOFError) and (dead := self._dead()):
            raise RuntimeError(f"{self._who(dead)} exited unexpectedly") from error
        if (match := _RAISED.match(text)) and isinstance(error, ValueError):
            raise ValueError(text.rpartition(f"\n{match[1]}: ")[2].rstrip() or text) from error

    def _kill(self, hanging: list[int]) -> None:
        """Kills all worker processes, so that nobody waits for them; notes those that were reading."""
        pids = [pid for pid in self._now_W2[:, 0].tolist() if pid != NOBODY]
        hanging += [pid for pid, index in self._now_W2.tolist() if index != NOBODY] or pids or [NOBODY]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _dead(self) -> list[int]:
        alive = {process.pid for process in multiprocessing.active_children()}
        return [pid for pid in self._now_W2[:, 0].tolist() if pid not in alive and pid != NOBODY]

    def _who(self, pids: Sequence[int]) -> str:
        """The worker processes, and what they were reading."""
        at = {pid: index for pid, index in self._now_W2.tolist() if index != NOBODY}
        told = [f"{pid} (reading {self._named(at[pid])})" if pid in at else str(pid) for pid in pids]
        return f"data.num_workers: worker process {', '.join(told) or 'unknown'}"


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
        super().__init__(Reading(dataset, num_workers, named), num_workers=num_workers, **options)
        self._worker_timeout = worker_timeout

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.dataset, Reading)
        return self.dataset.explained(super().__iter__(), self._worker_timeout)
