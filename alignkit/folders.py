"""Where the folders of models are."""

import re
from importlib.resources import files
from pathlib import Path

from alignkit import trust


def located_folder(path: str, *, marker: str, kind: str, owner: str) -> str:
    """Where a model is: a local folder, or a hub id as it stands.

    Args:
        path: a folder, a hub id such as "owner/name", or "package:folder" for a folder that an installed
            package ships.
        marker: a file that every folder of this kind has.
        kind: what the folder should be, for the message.
        owner: class that is given the path, for the message.

    Raises:
        ValueError: there is no such folder, and the path is no hub id.
        TrustError: the package is not trusted: to find its folder is to import it.
    """
    if match := re.fullmatch(r"([A-Za-z_]\w*):(\w[\w/.-]*)", path):
        if not trust.within(match[1], trust.allowed()):
            raise trust.TrustError(f"{owner}: path {path!r}: {trust.refusal(match[1])}")
        try:
            path = str(files(match[1]) / match[2])
        except ModuleNotFoundError:
            raise ValueError(f"{owner}: path {path!r}: no package {match[1]!r} is installed") from None
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists():
        return path
    if not (Path(path) / marker).is_file():
        raise ValueError(
            f"{owner}: path {path!r} is no {kind} folder (it has no {marker}). "
            "Give a folder that save_pretrained wrote, a hub id like 'owner/name', or 'package:folder'"
        )
    return path
