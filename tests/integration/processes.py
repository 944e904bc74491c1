"""Several processes that run commands in turn, so that all of them cost one start.

Each is ``python -m tests.integration.processes FILE RANK WORLD_SIZE PORT``: FILE holds a list of arguments
for each command, and the processes of one PORT take part in each other's runs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from alignkit.types import Batch
from tests.runs import environment


class SeenPairs(pl.Callback):
    """Writes down which pairs each process was given at each training step, and at which visit."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[tuple[int, int]]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.seen.append(list(zip(batch.id_B.tolist(), batch.visit_B.tolist(), strict=True)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        path = Path(trainer.default_root_dir, f"pairs-{trainer.global_rank}.json")
        path.write_text(json.dumps(self.seen))


class Sent(pl.Callback):
    """Writes down how often gradients were sent in each micro-step."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.register_comm_hook(None, self._sending)

    def on_train_batch_start(self, *_: object) -> None:
        self.times.append(0)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        Path(trainer.default_root_dir, f"sent-{trainer.global_rank}.json").write_text(json.dumps(self.times))

    def _sending(self, state: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.times[-1] += 1
        return allreduce_hook(state, bucket)


class Together:
    """So many processes that run commands in a folder; nothing of them is left at the end."""

    def __init__(self, folder: Path, commands: Sequence[Sequence[str]], world_size: int) -> None:
        (folder / "commands.json").write_text(json.dumps(commands))
        port = find_free_network_port()
        self._logs = [folder / f"err-{rank}.txt" for rank in range(world_size)]
        self._processes = []
        for rank, path in enumerate(self._logs):
            command = [sys.executable, "-m", __name__, "commands.json", str(rank), str(world_size), str(port)]
            with path.open("w") as log:
                self._processes.append(
                    subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
                )

    def __enter__(self) -> "Together":
        return self

    def wait(self) -> None:
        """Until all have ended well."""
        for process, path in zip(self._processes, self._logs, strict=True):
            assert process.wait(timeout=600) == 0, path.read_text()[-3000:]

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def main() -> int:
    from alignkit.cli import main

    file, rank, world_size, port = sys.argv[1:]
    # as Lightning finds them where somebody else started the processes
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "NODE_RANK": "0",
    }
    for arguments in json.loads(Path(file).read_text()):
        os.environ.pop("ALIGNKIT_RUN", None)
        if code := main(["--trust", "tests", *arguments]):
            print(f"{code}: {' '.join(arguments)}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
