"""Which rewards a training has seen, as far as its config tells: those report too well of it."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignkit.pairs.files import TOLD


def rewards_seen(config: Mapping[str, Any], installed: Collection[str]) -> tuple[str, ...]:
    """Class names of rewards that a run's parts were given, or that judged the pairs it was trained on.

    Args:
        config: the run's.
        installed: class names of rewards.
    """
    parts = {name: part for name, part in config.items() if name not in ("evaluation", "samples")}
    named = {str(path).rpartition(".")[2] for path in _values(parts, "class_path")}
    train = (config.get("data") or {}).get("train") or {}
    judged = {name for path in _values(train, "path") for name in judges_of(Path(str(path)))}
    return tuple(sorted(named & set(installed) | judged))


def judges_of(path: Path) -> list[str]:
    """Who judged pairs that `alignkit pairs` made, in a file or a folder; nobody is known of others."""
    found: dict[str, Any] = {}
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        try:
            told = json.loads((pq.read_schema(file).metadata or {}).get(TOLD, b"{}"))
            found |= dict(told["provenance"]["rewards"])
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
    return list(found)


def _values(part: Any, key: str) -> Iterator[Any]:
    """All values of a key, however deep."""
    if isinstance(part, Mapping):
        for name, value in part.items():
            if name == key:
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(part, list):
        for item in part:
            yield from _values(item, key)
