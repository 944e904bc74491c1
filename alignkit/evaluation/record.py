"""What an evaluation's folder is of, so that it is gone on with, and never mixed with another."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.files import write_text

FILE = "evaluation.json"


class Record:
    """The settings of an evaluation, in its folder, and which weights each name had.

    Args:
        folder: the folder of the evaluation.
        settings: what may not change while it is gone on with, in values that JSON takes.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = folder / FILE, json.loads(json.dumps(settings))
        self._models: dict[str, str] = {}

    def check(self) -> None:
        """Reads what there is.

        Raises:
            ValueError: the folder is of another evaluation, or of something else.
        """
        folder = self._path.parent
        if folder.is_file():
            raise ValueError(f"--out {folder}: is a file; give a folder")
        if not folder.exists() or not any(folder.iterdir()):
            return
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            found, self._models = told["settings"], told["models"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"--out {folder}: holds other things than an evaluation; give another folder"
            ) from error
        for name, value in self._settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"--out {folder}: is of another {name}: {found.get(name)!r}, not {value!r}\n"
                    "Give another --out, or move it away"
                )

    def changed(self, models: Mapping[str, str]) -> list[str]:
        """Names of models that stood for other ones before."""
        return [name for name, key in models.items() if self._models.get(name, key) != key]

    def write(self, models: Mapping[str, str]) -> None:
        """Keeps the settings, and which model each name stands for now, by keys."""
        self._models = {**self._models, **models}
        content = {"settings": self._settings, "models": self._models}
        write_text(self._path, json.dumps(content, indent=2) + "\n")
