"""Everything that is promised of speed, and what was found, in one table.

    python benchmarks/promises.py --out benchmarks/results

The figures are those that the benchmarks have kept beside their results; each says the command that gave it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from report import KEPT, NOT_YET, Promise, write

NAMES = ("step_time", "bank", "data", "start_up", "sampling", "inversion", "gpu")
RESULTS = Path(__file__).parent / "results"


def page(results: Path) -> list[str]:
    """The table, as lines of Markdown.

    Args:
        results: folder of the results.
    """
    kept: dict[str, dict[str, Any]] = {
        name: json.loads((results / KEPT / f"{name}.json").read_text()) for name in NAMES
    }
    places = sorted({told["conditions"] for told in kept.values() if told["conditions"]})
    lines = [
        "# What is promised of speed",
        "",
        "`python benchmarks/promises.py --out benchmarks/results`, of what the commands in the table keep.",
        "",
        "| | promised | found | kept | command | date, commit | on |",
        "|---|---|---|---|---|---|---|",
    ]
    for told in kept.values():
        where, when = "", NOT_YET
        if told["conditions"]:
            where, when = str(1 + places.index(told["conditions"])), f"{told['date']}, {told['commit']}"
        for fields in told["promises"]:
            lines.append(f"| {Promise(**fields).cells} | `{told['command']}` | {when} | {where} |")
    return [*lines, "", *(f"{number}. {place}" for number, place in enumerate(places, 1))]


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    options = parser.parse_args()
    lines = page(RESULTS)
    print("\n".join(lines))
    if options.out:
        write(lines, options.out, "promises", dated=False)


if __name__ == "__main__":
    main()
