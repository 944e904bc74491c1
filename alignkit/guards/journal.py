"""The steps that guards have something to say of: read together, since reading waits for the device."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from alignkit.distributed import gathered_objects
from alignkit.guards.record import Fact, Step, entry, sentence, told
from alignkit.guards.stopping import StoppedError

FILE = "guards.jsonl"
SHOWN = 3


class Journal:
    """Reads steps, names them on the screen and in a file, and counts those in a row that were left out.

    Args:
        max_skipped: after so many of them a run is to end.
    """

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self._last_of_many = 0
        self._last_said = ""
        self._in_row = 0
        self._unread: list[Step] = []

    def add(self, step: Step) -> None:
        """Takes in a step, to be read later."""
        self._unread.append(step)

    def read(self, folder: Path, is_first: bool) -> None:
        """Reads what was taken in; every process must call it.

        Args:
            folder: the run's.
            is_first: whether this process is the one that writes.
        """
        steps, self._unread = self._unread, []
        if not steps:
            return
        rows = torch.stack([torch.stack(step.row()) for step in steps]).tolist()
        facts = [Fact.read(row) for row in rows]
        for step, fact in zip(steps, facts, strict=True):
            self._in_row = self._in_row + 1 if fact.skipped else 0
            if self._in_row == self.max_skipped:
                self._last_of_many = step.number
        noted = [(step, fact) for step, fact in zip(steps, facts, strict=True) if fact.bad or fact.spiking]
        if not noted:
            return
        processes = gathered_objects([told(step.batches) for step, _ in noted])
        lines = [
            entry(step.number, fact, list(ranks))
            for (step, fact), *ranks in zip(noted, *processes, strict=True)
        ]
        if is_first:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / FILE).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        said = [sentence(fact, line) for (_, fact), line in zip(noted, lines, strict=True)]
        self._last_said = said[-1]
        more = f"\nand {len(said) - SHOWN} more steps" if len(said) > SHOWN else ""
        rank_zero_warn("\n".join(said[:SHOWN]) + f"{more}\nPrompts and all samples stand in {folder / FILE}")

    def check(self, folder: Path) -> None:
        """Ends a run of too many that were left out in a row.

        Raises:
            StoppedError: there are as many.
        """
        if not self._last_of_many:
            return
        raise StoppedError(
            f"the updates of {self.max_skipped} steps in a row, up to step {self._last_of_many}, were left "
            f"out, so the run stops\n{self._last_said}\nPrompts and all samples stand in {folder / FILE}\n"
            "If it is always the same samples, leave them out; if not, try a lower learning rate, a smaller "
            "beta,\ngradient clipping, or 32-true. guards.max_skipped says after how many steps a run stops"
        )

    def state_dict(self) -> dict[str, Any]:
        """How many in a row there are."""
        return {"in_row": self._in_row, "last_of_many": self._last_of_many}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken; a run that was stopped and goes on may try again."""
        self._in_row = state["in_row"] if not state["last_of_many"] else 0
