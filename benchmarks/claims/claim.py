"""What a claim is to the bench."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from arms import UTILITY, Arm, Runs
from choice import Choice
from intervals import Condition


class Line(NamedTuple):
    """A row of the claim's table.

    Args:
        label: what stands there.
        arm: whose figures.
        audience: of a conditioner, "" without one.
        measure: the utility that counts.
    """

    label: str
    arm: str
    audience: str = ""
    measure: str = UTILITY


class Claim(ABC):
    """A claim with its protocol, which is the docstring of its module.

    Class attributes:
        letter: its place in the bench.
        title: what is claimed.
        paper: where.
        control: what would refute it.
    """

    letter: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    control: ClassVar[str]

    @property
    def protocol(self) -> str:
        """What was written before the first run."""
        return inspect.getdoc(inspect.getmodule(type(self))) or ""

    @abstractmethod
    def choices(self) -> Sequence[Choice]:
        """What is chosen on the tuning prompts."""

    @abstractmethod
    def arms(self) -> Sequence[Arm] | None:
        """What is trained with five seeds; None while a choice waits."""

    @abstractmethod
    def conditions(self, runs: Runs) -> Sequence[Condition]:
        """What must hold for the claim to hold; controls among it."""

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        """What the paper says besides, which does not decide."""
        return ()

    @abstractmethod
    def lines(self, runs: Runs) -> Sequence[Line]:
        """Rows of the table, the first two of which the grid of pictures shows beside the base."""


def all_of(*arms: Arm | None) -> list[Arm] | None:
    """The arms, or None while one of them waits for a choice."""
    known = [arm for arm in arms if arm is not None]
    return known if len(known) == len(arms) else None
