"""Rows of parquet and arrow files, or of a data set of the hub: mapped, not read."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, Value, load_dataset

from alignkit_sources.files import read_within

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_READERS = {"parquet": "parquet", "arrow": "arrow"}


def table(
    path: str, owner: str, columns: Collection[str], *, split: str | None, revision: str | None
) -> Dataset:
    """Opens a file, a folder of files, or a data set of the hub.

    Parquet files are converted once to arrow, in the cache of ``datasets``.

    Args:
        path: what to open.
        owner: what messages call the source.
        columns: columns that it must have.
        split: of a folder, only files whose name begins with it and a dash; of the hub, "train" without it.
        revision: of the hub: a commit, tag or branch.

    Raises:
        ValueError: there is no such thing, or a column is missing.
    """
    rows = _local(path, owner, split) if Path(path).exists() else _hub(path, owner, split, revision)
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"{owner}: {path!r} has no column {', '.join(missing)}; it must have {', '.join(columns)}, "
            f"and has {', '.join(rows.column_names)}"
        )
    for name, feature in rows.features.items():
        if isinstance(feature, Image):  # its bytes, as they are
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def picture(value: Any, root: Path, owner: str) -> bytes:
    """The bytes of a picture that a column holds, alone or in a struct, or the path of.

    Raises:
        ValueError: it is empty.
    """
    said = value if isinstance(value, dict) else {"bytes": value}
    data, path = said.get("bytes"), said.get("path")
    if data and isinstance(data, bytes):
        return data
    if path and isinstance(path, str):
        return read_within(root, path, owner)
    raise ValueError(f"{owner}: its picture is empty")


def check_texts(rows: Dataset, owner: str, *columns: str) -> None:
    """Checks that columns hold texts.

    Raises:
        ValueError: one does not.
    """
    _check_kinds(rows, owner, columns, ("string", "large_string"), "texts")


def check_numbers(rows: Dataset, owner: str, *columns: str) -> None:
    """Checks that columns hold numbers.

    Raises:
        ValueError: one does not.
    """
    _check_kinds(rows, owner, columns, ("float", "int", "uint", "bool"), "numbers")


def _check_kinds(
    rows: Dataset, owner: str, columns: Collection[str], kinds: tuple[str, ...], what: str
) -> None:
    for name in columns:
        feature = rows.features[name]
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        if kind.rstrip("0123456789") not in kinds:
            raise ValueError(f"{owner}: column {name} must hold {what}, holds {kind}")


def _local(path: str, owner: str, split: str | None) -> Dataset:
    home = Path(path)
    for kind, reader in _READERS.items():
        if home.is_dir():
            files = sorted(home.glob(f"{split}-*.{kind}" if split else f"*.{kind}"))
        else:
            files = [home] if home.suffix == f".{kind}" else []
        if files:
            try:
                rows = load_dataset(reader, data_files=[str(file) for file in files], split="train")
            except Exception as error:  # its own errors, and whatever pyarrow and its types raise
                reason = " ".join(str(error.__cause__ or error).split())
                raise ValueError(f"{owner}: {path!r} cannot be read: {reason}") from error
            assert isinstance(rows, Dataset)
            return rows
    named = f" of split {split!r}" if split else ""
    raise ValueError(f"{owner}: path {path!r} is no parquet file and no folder that holds some{named}")


def _hub(path: str, owner: str, split: str | None, revision: str | None) -> Dataset:
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"{owner}: path {path!r} is no parquet file and no folder that holds some")
    try:
        rows = load_dataset(path, split=split or "train", revision=revision)
    except Exception as error:  # the hub's library raises what its many parts raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{owner}: path {path!r} is neither here nor a data set of the hub that can be had: {reason}"
        ) from error
    assert isinstance(rows, Dataset)
    return rows
