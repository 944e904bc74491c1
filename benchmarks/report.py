"""What every result says of itself, and where it is written."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def header(title: str, *remarks: str, hardware: str = "") -> list[str]:
    """Title, command, date, commit, hardware and versions, as lines of Markdown.

    Args:
        title: of the result.
        *remarks: further lines.
        hardware: what it ran on besides the processor.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "lightning"))
    machine = f"{hardware}, {processor()}" if hardware else processor()
    threads = os.environ.get("OMP_NUM_THREADS", "as many as torch chooses")
    return [
        f"# {title}",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {machine}, threads: {threads}, "
        f"Python {platform.python_version()}, {versions}.",
        *remarks,
        "",
    ]


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
