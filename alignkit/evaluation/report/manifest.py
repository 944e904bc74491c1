"""A manifest as lines of a setting and its value."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def flat(manifest: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted name. Lists stand in one line, others than texts as JSON."""
    for key, value in manifest.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield before + key, value if isinstance(value, str) else _words(value)


def _words(value: object) -> str:
    if isinstance(value, list | tuple) and not any(
        isinstance(part, list | tuple | Mapping) for part in value
    ):
        return ", ".join(part if isinstance(part, str) else json.dumps(part) for part in value)
    return json.dumps(value, ensure_ascii=False)
