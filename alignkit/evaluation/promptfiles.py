"""Prompts in files: a line each, or rows of JSON, CSV or parquet with named columns."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignkit.evaluation.results import Prompt

Row = Mapping[str, Any]
# where a prompt stands if nobody says
PROMPT_COLUMNS = ("prompt", "Prompt", "prompts", "Prompts", "caption", "text")
CATEGORY_COLUMNS = ("category", "Category")


def read_prompts(
    path: Path, owner: str, *, prompt: str | None = None, category: str | None = None
) -> list[Prompt]:
    """Reads the prompts of a file, in order, by its suffix.

    Args:
        path: a .txt file with a prompt a line; or .jsonl, .json, .csv, .tsv or .parquet with columns. A list
            of texts in a .json file is one of prompts.
        owner: what messages call the suite.
        prompt: the column of prompts; one of ``PROMPT_COLUMNS`` without it.
        category: the column of categories; one of ``CATEGORY_COLUMNS``, or none, without it.

    Raises:
        ValueError: it cannot be read, or has no such column.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{owner}: {path}: prompts are read from {', '.join(READERS)} files")
    try:
        rows = list(READERS[path.suffix](path))
    except FileNotFoundError as error:
        raise ValueError(f"{owner}: there is no file {str(path)!r}") from error
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{owner}: {path}: cannot be read: {error}") from error
    if not rows:
        return []
    lines = [isinstance(row, str) for row in rows]
    if all(lines):
        return [Prompt(row) for row in rows]
    if any(lines) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{owner}: {path}: must hold texts or objects with named values, not both")
    return _from_columns(rows, f"{owner}: {path}", prompt, category)


def _from_columns(rows: Sequence[Row], name: str, prompt: str | None, category: str | None) -> list[Prompt]:
    column = _column(rows[0], prompt, PROMPT_COLUMNS)
    if column is None:
        raise ValueError(
            f"{name}: has no column {prompt or ' or '.join(PROMPT_COLUMNS)}, only {', '.join(rows[0])}; "
            f"name it: --suite '{{path: FILE, prompt: COLUMN}}'"
        )
    kind = _column(rows[0], category, CATEGORY_COLUMNS)
    if category is not None and kind is None:
        raise ValueError(f"{name}: has no column {category}, only {', '.join(rows[0])}")
    prompts = []
    for number, row in enumerate(rows, 1):
        text = row.get(column)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{name}, row {number}: {column} must be a text, got {text!r}")
        prompts.append(Prompt(text or "", str(row.get(kind) or "") if kind else ""))
    return prompts


def _column(row: Row, wanted: str | None, usual: Sequence[str]) -> str | None:
    names = usual if wanted is None else (wanted,)
    return next((name for name in names if name in row), None)


def _lines(path: Path) -> Iterable[str]:
    return path.read_text(encoding="utf-8-sig").splitlines()


def _json(path: Path) -> Iterable[Any]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    return content if isinstance(content, list) else [content]


def _json_lines(path: Path) -> Iterable[Any]:
    return (json.loads(line) for line in _lines(path) if line.strip())


def _commas(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _tabs(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t")


def _parquet(path: Path) -> Iterable[Row]:
    file = pq.ParquetFile(path)
    # pictures may stand beside the prompts
    light = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
    rows: list[Row] = file.read(columns=light).to_pylist()
    return rows


READERS: Mapping[str, Callable[[Path], Iterable[Any]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _commas,
    ".tsv": _tabs,
    ".parquet": _parquet,
}
