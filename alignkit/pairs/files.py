"""Parquet files that say where they come from."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignkit.files import whole

# the key of what a file says of itself
TOLD = b"alignkit"


def is_there(path: Path, told: Mapping[str, Any]) -> bool:
    """Whether there is a file that says of itself what it should; one that is damaged is none.

    Raises:
        ValueError: it says something else.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    try:
        found = json.loads(metadata.get(TOLD, b"{}"))["provenance"]
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not of this command; give another --out")
    for name, value in json.loads(json.dumps(told)).items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} is of another {name}: {found.get(name)!r}, not {value!r}\n"
                "Give another --out, or move it away"
            )
    return True


def write_table(path: Path, tables: Iterable[pa.Table], told: Mapping[str, Any]) -> None:
    """Writes a parquet file of one row group after the other, under another name until it is whole."""
    writer: pq.ParquetWriter | None = None
    with whole(path) as partial:
        try:
            for table in tables:
                if writer is None:
                    schema = table.schema.with_metadata({TOLD: json.dumps(told).encode()})
                    writer = pq.ParquetWriter(partial, schema)
                writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
        finally:
            if writer is not None:
                writer.close()
