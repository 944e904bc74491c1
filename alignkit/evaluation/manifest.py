"""What is needed to do an evaluation again, and to know that it is the same."""

import json
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch

import alignkit

DRAWING = ("torch", "diffusers", "transformers", "peft")
LIBRARIES = (*DRAWING, "lightning", "numpy")


def versions() -> dict[str, str]:
    """Of alignkit and of what draws; alignkit's commit, where it is known."""
    found = {"alignkit": alignkit.__version__, **{name: version(name) for name in LIBRARIES}}
    commit = _installed_commit() or _checked_out_commit()
    return found | ({"alignkit commit": commit} if commit else {})


def drawing_environment(device: str, batch_size: int) -> dict[str, str]:
    """What the last bits of pictures depend on besides the model: what computes, and how many at once."""
    libraries = {name: version(name) for name in DRAWING}
    return {"device": device_name(device), "batch_size": str(batch_size), **libraries}


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _installed_commit() -> str:
    """Of an installation from a repository (PEP 610)."""
    try:
        told = json.loads(distribution("alignkit").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return str(told.get("vcs_info", {}).get("commit_id", ""))


def _checked_out_commit() -> str:
    """Of a checkout; with a mark if files of it were changed."""
    root = Path(alignkit.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}, changed" if _git(root, "status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def device_name(device: str) -> str:
    """What the pictures are drawn on, such as "cpu" or the name of a GPU."""
    where = torch.device(device)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
