"""Pairs of which some labels are swapped, the same ones in every run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alignkit.components import PairSource
from alignkit.noise import uniform
from alignkit.types import Key, PairRecord

TIE = 0.5


class Flips(NamedTuple):
    """Which pairs of a source are swapped, and where that comes from.

    Args:
        rate: share of the decided pairs that was asked for.
        seed: seed of the choice.
        pairs: number of pairs of the source, ties among them.
        ties: number of pairs without a winner; they are never swapped.
        source: what a config says of the source.
        fingerprint: hash of the source's labels and prompts.
        rows: places of the swapped pairs in the source.
        ids: their ids.
    """

    rate: float
    seed: int
    pairs: int
    ties: int
    source: Mapping[str, Any]
    fingerprint: str
    rows: list[int]
    ids: list[int]


class FlippedPairs(PairSource):
    """Another source with some labels swapped: synthetic minority samples.

    Args:
        source: where the pairs come from.
        flips: a file that `alignkit flip` wrote for that source.
    """

    def __init__(self, source: PairSource, flips: str) -> None:
        if source.winners_only:
            raise ValueError(
                f"FlippedPairs: {type(source).__name__} has winners only; there is nothing to swap"
            )
        found = read_flips(Path(flips))
        if found.pairs != len(source) or found.fingerprint != fingerprint(source):
            raise ValueError(
                f"FlippedPairs: flips {flips!r} was made for another source: {found.pairs} pairs of "
                f"{json.dumps(found.source)}, got {len(source)} pairs; write one with alignkit flip"
            )
        self._source = source
        ids, flipped = source.ids(), set(found.rows)
        for row, wanted in zip(found.rows, found.ids, strict=True):
            if ids[row] != wanted:
                raise ValueError(
                    f"FlippedPairs: flips {flips!r} was made for another source: pair {row} has id "
                    f"{ids[row]} there, must be {wanted}; write one with alignkit flip"
                )
        self._labels = [
            1 - label_0 if row in flipped else label_0 for row, label_0 in enumerate(source.labels())
        ]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> PairRecord:
        return self._source[index]._replace(label_0=self._labels[index])

    def labels(self) -> list[float]:
        return list(self._labels)

    def prompts(self) -> list[str]:
        return list(self._source.prompts())

    def users(self) -> list[str]:
        return list(self._source.users())

    def ids(self) -> list[int]:
        return list(self._source.ids())


def choose_flips(source: PairSource, described: Mapping[str, Any], *, rate: float, seed: int) -> Flips:
    """Chooses a share of the decided pairs, uniformly at random and once.

    Each pair has a random number of its own, and those with the smallest are chosen: a larger rate of the
    same seed keeps what a smaller one has chosen.

    Args:
        source: the pairs.
        described: what a config says of them.
        rate: share of the decided pairs, from 0 to 1.
        seed: seed of the numbers.

    Raises:
        ValueError: the rate is no share.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be from 0 to 1, got {rate}")
    labels, ids = source.labels(), source.ids()
    decided = torch.tensor([row for row, label_0 in enumerate(labels) if label_0 != TIE], dtype=torch.int64)
    order = uniform(Key(seed, decided, torch.zeros_like(decided)), "flip")[:, 0].argsort(stable=True)
    rows = sorted(decided[order[: round(rate * len(decided))]].tolist())
    return Flips(
        rate=rate,
        seed=seed,
        pairs=len(source),
        ties=len(labels) - len(decided),
        source=described,
        fingerprint=fingerprint(source),
        rows=rows,
        ids=[ids[row] for row in rows],
    )


def fingerprint(source: PairSource) -> str:
    """A hash of a source's labels and prompts: tells sources apart without touching a picture."""
    content = json.dumps([list(map(float, source.labels())), list(source.prompts())])
    return hashlib.sha256(content.encode()).hexdigest()


def write_flips(path: Path, flips: Flips) -> None:
    """Writes a new file.

    Raises:
        FileExistsError: there is one already.
    """
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in flips._asdict().items()]
    with path.open("x", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def read_flips(path: Path) -> Flips:
    """Reads what ``write_flips`` wrote.

    Raises:
        ValueError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise ValueError(f"FlippedPairs: flips {str(path)!r} is no file; alignkit flip writes one")
    try:
        flips = Flips(**json.loads(path.read_text(encoding="utf-8")))
        rows, ids, pairs = list(map(int, flips.rows)), list(map(int, flips.ids)), int(flips.pairs)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"FlippedPairs: flips {str(path)!r} is no file of alignkit flip: {error}") from error
    if len(rows) != len(ids) or not all(0 <= row < pairs for row in rows):
        raise ValueError(
            f"FlippedPairs: flips {str(path)!r} is damaged: {len(rows)} rows, {len(ids)} ids, {pairs} pairs"
        )
    return flips._replace(rows=rows, ids=ids, pairs=pairs)
