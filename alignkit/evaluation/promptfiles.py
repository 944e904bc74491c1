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
    path: Path,
    owner: str,
    *,
    prompt: str | None = None,
    category: str | None = None,
    kind: str | None = None,
) -> list[Prompt]:
    """Reads the prompts of a file, in order, by its suffix.

    Args:
        path: a .txt file with a prompt a line; or .jsonl, .json, .csv, .tsv or .parquet with columns. A list
            of texts in a .json file is one of prompts.
        owner: what messages call the suite.
        prompt: the column of prompts; one of ``PROMPT_COLUMNS`` without it.
        category: the column of categories; one of ``CATEGORY_COLUMNS``, or none, without it.
        kind: the suffix of files of its kind, in ``READERS``; its own without it.

    Raises:
        ValueError: it cannot be read, or has no such column.
    """
    reader = READERS.get(kind or path.suffix.lower())
    if reader is None:
        raise ValueError(f"{owner}: {path}: prompts are read from {', '.join(READERS)} files")
    try:
        rows = list(reader(path))
    except FileNotFoundError as error:
        raise ValueError(f"{owner}: there is no file {str(path)!r}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{owner}: {path}: is no text in UTF-8 ({error}); save it as such") from error
    except (OSError, ValueError, RecursionError, pa.ArrowException, csv.Error) as error:
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
    others = ", ".join(rows[0]) or "such as hold no text"
    if column is None:
        wanted = prompt or " or ".join(PROMPT_COLUMNS)
        hint = "rename one, or name it: --suite '{path: FILE, prompt: COLUMN}'"
        raise ValueError(f"{name}: has no column {wanted}, only {others}; {hint}")
    kind = _column(rows[0], category, CATEGORY_COLUMNS)
    if category is not None and kind is None:
        raise ValueError(f"{name}: has no column {category}, only {others}")
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


def _lines(path: Path) -> list[str]:
    # not splitlines: separators of Unicode's are part of a prompt
    with path.open(encoding="utf-8-sig") as file:
        return [line.removesuffix("\n") for line in file]


def _json(path: Path) -> Iterable[Any]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    return content if isinstance(content, list) else [content]


def _json_lines(path: Path) -> Iterable[Any]:
    for number, line in enumerate(_lines(path), 1):
        try:
            if line.strip():
                yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error


def _commas(path: Path) -> Iterable[Row]:
    return _separated(path, ",")


def _tabs(path: Path) -> Iterable[Row]:
    return _separated(path, "\t")


def _separated(path: Path, delimiter: str) -> Iterable[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), 1):
            # under no name, what there are no columns for
            if any(row.pop(None, ())):
                raise ValueError(
                    f"row {number} has more values than there are columns; a text that holds {delimiter!r} "
                    "must be quoted"
                )
            yield row


def _parquet(path: Path) -> Iterable[Row]:
    file = pq.ParquetFile(path)
    # pictures may stand beside the prompts
    light = [field.name for field in file.schema_arrow if not _is_heavy(field.type)]
    rows: list[Row] = file.read(columns=light).to_pylist()
    return rows


def _is_heavy(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


READERS: Mapping[str, Callable[[Path], Iterable[Any]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _commas,
    ".tsv": _tabs,
    ".parquet": _parquet,
}
