"""Published lists of prompts in miniature, written as their authors do."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Arguments = dict[str, Any]


def parti(folder: Path) -> Arguments:
    """Tabs, a header, quotes only where a field needs them."""
    lines = [
        "Prompt\tCategory\tChallenge\tNote",
        "bond\tAbstract\tBasic\tBiology-inspired concepts",
        '"a sign that says ""Deep Learning"""\tArts\tWriting & Symbols\t',
        "the moon\tOutdoor Scenes\tBasic\t",
    ]
    path = folder / "PartiPrompts.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"path": str(path)}


def hpd(folder: Path) -> Arguments:
    """Four lists of texts, in a folder of the repository."""
    (folder / "benchmark").mkdir()
    for style in ("anime", "concept-art", "paintings", "photo"):
        prompts = [f"a castle, {style}", f"a fox, {style}"]
        (folder / "benchmark" / f"{style}.json").write_text(json.dumps(prompts))
    return {"path": str(folder)}


def pickapic(folder: Path) -> Arguments:
    """A file of each split, with the columns that its card names; ``caption`` is one of them."""
    for split, captions in (("test_unique", ["a cat", "a dog"]), ("validation_unique", ["a bird"])):
        table = pa.table({"are_different": [True] * len(captions), "caption": captions})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return {"path": str(folder)}


def drawbench(folder: Path) -> Arguments:
    """The table as it is saved from a spreadsheet."""
    path = folder / "drawbench.csv"
    path.write_text('Prompts,Category\nA red car.,Colors\n"A cube, and a sphere.",Positional\n')
    return {"path": str(path)}


def geneval(folder: Path) -> Arguments:
    """An object a line."""
    rows = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "a photo of two cups"},
    ]
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder)}


LISTS: Mapping[str, Callable[[Path], Arguments]] = {
    "PartiPrompts": parti,
    "HPDv2Benchmark": hpd,
    "PickAPicUnique": pickapic,
    "DrawBench": drawbench,
    "GenEval": geneval,
}
