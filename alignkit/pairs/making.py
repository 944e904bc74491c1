"""Pairs of candidates, written with a picture and a summary of them. Suffix: K candidates of a prompt."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image

from alignkit.evaluation.sheet import contact_sheet
from alignkit.evaluation.suites import evenly
from alignkit.files import whole, write_text
from alignkit.pairs.candidates import Candidates, Drawn
from alignkit.pairs.files import write_table
from alignkit.pairs.pairing import Rule, columns, row, told
from alignkit.pairs.selection import Choice

PAIRS = "pairs.parquet"
SUMMARY = "pairs.json"
SHEET = "pairs.png"
SHEET_PROMPTS = 8


class Shown(NamedTuple):
    """A pair on the contact sheet."""

    label: str
    better: Image.Image
    worse: Image.Image


class Making:
    """Goes through candidates once, and writes what comes of them.

    Args:
        candidates: all of them, drawn and judged.
        rule: which become pairs.
        remarks: what else the summary says, such as versions.
    """

    def __init__(self, candidates: Candidates, rule: Rule, remarks: Mapping[str, Any]) -> None:
        self._candidates, self._rule, self._remarks = candidates, rule, remarks
        self._score: dict[str, list[float]] = {"candidates": [], "better": [], "worse": []}
        self._differences: list[float] = []
        self._shown: list[Shown] = []
        self._without = 0

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes ``PAIRS``, ``SUMMARY`` and ``SHEET``; returns the summary.

        Raises:
            ValueError: no two candidates of a prompt differ by more than the margin.
        """
        from_where = told(self._candidates.order, self._rule)
        write_table(folder / PAIRS, self._tables(), {"provenance": from_where, **self._remarks})
        summary = self._summary(from_where)
        write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        sheet = contact_sheet(
            [[shown.better for shown in self._shown], [shown.worse for shown in self._shown]],
            ["better", "worse"],
            [shown.label for shown in self._shown],
        )
        with whole(folder / SHEET) as partial:
            sheet.save(partial, "PNG")
        return summary

    def _tables(self) -> Iterator[pa.Table]:
        """Pairs, one table for each file of candidates that has some."""
        order, schema, number = self._candidates.order, columns(self._rule), 0
        on_sheet = set(evenly(range(len(order.prompts)), SHEET_PROMPTS))
        has_pairs = False
        for part in self._candidates.read():
            rows = []
            for drawn in part:
                score_K = self._rule.scores(drawn)
                choices = self._rule.choose(score_K)
                self._note(score_K, choices)
                if choices and number in on_sheet:
                    self._shown.append(_shown(drawn, score_K, choices[0]))
                rows += [row(drawn, score_K, choice, order, self._rule) for choice in choices]
                number += 1
            if rows:
                has_pairs = True
                yield pa.Table.from_pylist(rows, schema=schema)
        if not has_pairs:
            raise ValueError(
                f"--margin {self._rule.margin:g}: no two candidates of a prompt differ by more; the best and "
                f"worst of a prompt differ by {median(self._differences):.4g} (median) and "
                f"{max(self._differences):.4g} (most)\nThe candidates are kept: give a smaller --margin"
            )

    def _note(self, score_K: list[float], choices: list[Choice]) -> None:
        self._score["candidates"] += score_K
        self._score["better"] += [score_K[choice.better] for choice in choices]
        self._score["worse"] += [score_K[choice.worse] for choice in choices]
        self._differences.append(max(score_K) - min(score_K))
        self._without += not choices

    def _summary(self, from_where: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "pairs": len(self._score["better"]),
            "prompts": len(self._differences),
            "prompts_without_pairs": self._without,
            "candidates": len(self._score["candidates"]),
            "mean_score": {name: fmean(values) for name, values in self._score.items()},
            "best_minus_worst": {
                "median": median(self._differences),
                "least": min(self._differences),
                "most": max(self._differences),
            },
            "provenance": from_where,
            **self._remarks,
        }


def _shown(drawn: Drawn, score_K: list[float], choice: Choice) -> Shown:
    better, worse = (Image.open(io.BytesIO(drawn.png_K[place])) for place in choice)
    label = f"{score_K[choice.better]:.2f} > {score_K[choice.worse]:.2f} {drawn.prompt}"
    return Shown(label, better, worse)
