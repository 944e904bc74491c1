"""What every result says of itself, what is promised of it, and where it is written."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

# where what was found of promises is kept, in the folder of the results
KEPT = "promises"
NOT_YET = "not yet run"


class Promise(NamedTuple):
    """What is promised of a figure, and what was found.

    Args:
        what: the figure.
        least: what it is to be at least; None where there is no such bound.
        most: what it is to be at most; None where there is no such bound.
        found: what it is; None where it was not yet run.
        told: what is said beside it.
    """

    what: str
    least: float | None = None
    most: float | None = None
    found: float | None = None
    told: str = ""

    @property
    def bar(self) -> str:
        """The bound, in words."""
        if self.least is not None:
            return f"at least {_figure(self.least)}"
        assert self.most is not None
        return f"at most {_figure(self.most)}"

    @property
    def is_kept(self) -> bool:
        """Whether it was run, and is as promised."""
        if self.found is None:
            return False
        return (self.least is None or self.found >= self.least) and (
            self.most is None or self.found <= self.most
        )

    @property
    def cells(self) -> str:
        """Cells of a table: what it is, what is promised, what was found, whether it is kept."""
        found, kept = NOT_YET, ""
        if self.found is not None:
            found = ", ".join([_figure(self.found), *([self.told] if self.told else [])])
            kept = "yes" if self.is_kept else "no"
        return f"{self.what} | {self.bar} | {found} | {kept}"


def header(title: str, *remarks: str, hardware: str = "") -> list[str]:
    """Title, command, date, commit, hardware and versions, as lines of Markdown.

    Args:
        title: of the result.
        *remarks: further lines.
        hardware: what it ran on besides the processor.
    """
    return [
        f"# {title}",
        "",
        f"`{command()}`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {conditions(hardware)}.",
        *remarks,
        "",
    ]


def command() -> str:
    """The command that is running."""
    return f"python {' '.join(sys.argv)}"


def conditions(hardware: str = "") -> str:
    """Hardware, threads and versions.

    Args:
        hardware: what it runs on besides the processor.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "lightning"))
    machine = f"{hardware}, {processor()}" if hardware else processor()
    threads = os.environ.get("OMP_NUM_THREADS", "as many as torch chooses")
    return f"{machine}, threads: {threads}, Python {platform.python_version()}, {versions}"


def keep(promises: Sequence[Promise], folder: Path, name: str, hardware: str = "") -> None:
    """Keeps what was found of promises, for the table of all of them (``promises.py``).

    Args:
        promises: of the result.
        folder: of the results.
        name: of the result.
        hardware: what it ran on besides the processor.
    """
    path = folder / KEPT / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    was_run = any(promise.found is not None for promise in promises)
    content = {
        "command": command().replace(" --not-yet-run", ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d}" if was_run else None,
        "commit": commit() if was_run else None,
        "conditions": conditions(hardware) if was_run else None,
        "promises": [promise._asdict() for promise in promises],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def commit() -> str:
    """The commit that is checked out, in short."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """Name and number of the processor's cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def write(lines: Sequence[str], folder: Path, name: str, where: str = "cpu", *, dated: bool = True) -> None:
    """Writes a result as ``<name>_<where>_<year and month>.md``, or as ``<name>.md``.

    Args:
        lines: of the result.
        folder: where it is written.
        name: of the result.
        where: what it ran on; a GPU's name may have any letters.
        dated: whether its name says where and when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = re.sub(r"[^a-z0-9]+", "_", where.lower()).strip("_")
    path = folder / (f"{name}_{plain}_{datetime.now(UTC):%Y%m}.md" if dated else f"{name}.md")
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
