"""Checkpoints: files, or folders of shards, that verify themselves, without pickle; and folders of them."""

from alignkit.checkpoints.file import UnsavedError
from alignkit.checkpoints.folder import (
    FOLDER,
    LAST,
    SUFFIX,
    check_present,
    find,
    kept,
    link,
    loaded,
    tidy,
)
from alignkit.checkpoints.forms import is_there, read, told, write
from alignkit.checkpoints.storage import CheckpointFiles
from alignkit.checkpoints.weights import Saved, saved

__all__ = [
    "FOLDER",
    "LAST",
    "SUFFIX",
    "CheckpointFiles",
    "Saved",
    "UnsavedError",
    "check_present",
    "find",
    "is_there",
    "kept",
    "link",
    "loaded",
    "read",
    "saved",
    "tidy",
    "told",
    "write",
]
