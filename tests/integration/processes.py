"""One process of several: runs commands in turn, so that all of them cost one start.

``python processes.py FILE RANK WORLD_SIZE PORT``: FILE holds a list of arguments for each command, and the
processes of one PORT take part in each other's runs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from alignkit.types import Batch


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
