"""Where the configs are: in ``configs/`` of a checkout, in ``alignkit/configs/`` of a wheel (setup.py)."""

import difflib
import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "configs", _HERE.parent / "configs")


class ConfigNotFoundError(FileNotFoundError):
    """No config has this name; the message says which come near."""


def packaged_configs() -> dict[str, Path]:
    """Configs that come with alignkit, by name within ``configs/``, such as ``emoji/vae.yaml``; sorted."""
    # in that order: beside an installed package, `configs/` would be a stranger's
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_config(name: str | os.PathLike[str]) -> Path:
    """Finds a config: a file of that path, from the current folder, or else a packaged config of that name.

    Raises:
        ConfigNotFoundError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigNotFoundError(f"config {path.as_posix()!r} is a folder; give a file in it")
    packaged = packaged_configs()
    if path.as_posix() in packaged:
        return packaged[path.as_posix()]
    near = difflib.get_close_matches(path.as_posix(), packaged, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    more = f" and {len(packaged) - 5} more: alignkit list --configs" if len(packaged) > 5 else ""
    raise ConfigNotFoundError(
        f"no config {path.as_posix()!r}{hint}\nThere is no such file in {Path.cwd()}\n"
        f"With alignkit come: {', '.join(list(packaged)[:5]) or 'none'}{more}"
    )
