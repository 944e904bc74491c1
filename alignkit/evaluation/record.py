"""What an evaluation's folder is of, so that it is gone on with, and never mixed with another."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit.evaluation.report import JSON, MARKDOWN, PAGE
from alignkit.evaluation.store import PICTURES, SCORES
from alignkit.files import hold, write_text, written_to

FILE, LOCK = "evaluation.json", ".lock"
OWN = {FILE, PICTURES, SCORES, JSON, MARKDOWN, PAGE}


class Record:
    """The settings of an evaluation, in its folder, which weights each name had, and where it was drawn.

    Args:
        folder: the folder of the evaluation.
        settings: what may not change while it is gone on with, in values that JSON takes.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, json.loads(json.dumps(settings))
        self._models: dict[str, str] = {}
        self.environments: list[dict[str, str]] = []

    def check(self) -> None:
        """Reads what there is.

        Where the record is lost, pictures and scores are still known by their hashes, and gone on with. While
        nothing is drawn, settings are not binding.

        Raises:
            ValueError: the folder is of another evaluation, or of something else, or cannot be written.
        """
        folder = self._folder
        try:
            names = set(os.listdir(folder))
        except FileNotFoundError:
            _check_parents(folder)
            return
        except OSError as error:
            raise ValueError(f"--out {folder}: give another folder\n{error.strerror}") from error
        if others := sorted(name for name in names - OWN if not name.startswith(".")):
            told = "other things than an evaluation"
            raise ValueError(f"--out {folder}: holds {told}, such as {others[0]}; give another folder")
        if not os.access(folder, os.W_OK):
            raise ValueError(f"--out {folder}: cannot be written to; give another folder")
        found, self._models, self.environments = _told(folder / FILE)
        if SCORES not in names:
            return
        for name, value in self._settings.items():
            if found.get(name, value) != value:
                raise ValueError(
                    f"--out {folder}: is of {_difference(name, found[name], value)}\n"
                    "Give another --out, or move it away"
                )

    def changed(self, models: Mapping[str, str]) -> list[str]:
        """Names of models that stood for other ones before."""
        return [name for name, key in models.items() if self._models.get(name, key) != key]

    def moved(self, environment: Mapping[str, str]) -> list[str]:
        """What was otherwise when pictures were drawn before."""
        before = {name: {each.get(name) for each in self.environments} for name in environment}
        return [name for name, value in environment.items() if before[name] - {value}]

    def write(self, models: Mapping[str, str], environment: Mapping[str, str] | None) -> None:
        """Keeps the settings, and which model each name stands for now, by keys.

        Args:
            models: keys by name.
            environment: devices and versions that pictures are now drawn with; None: there are none to draw.
        """
        self._models = {**self._models, **models}
        if environment is not None and environment not in self.environments:
            self.environments.append(dict(environment))
        content = {"settings": self._settings, "models": self._models, "environments": self.environments}
        write_text(self._folder / FILE, json.dumps(content, indent=2) + "\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out of the folder, until the end or the death of this one.

        Raises:
            ValueError: another one is at work in it, it cannot be written to, or the disk is full.
        """
        with written_to(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / LOCK).open("w") as file:
                hold(file.fileno(), self._folder)
                yield


def _told(path: Path) -> tuple[dict[str, Any], dict[str, str], list[dict[str, str]]]:
    """Settings, models and environments of a record; none where it is lost or damaged."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return dict(told["settings"]), dict(told["models"]), list(told["environments"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}, []


def _difference(name: str, found: object, wanted: object) -> str:
    if name == "prompts":  # their hashes tell nobody anything
        return "other prompts; other --max-prompts, or the suite's file has changed since"
    return f"another {name}: {found!r}, not {wanted!r}"


def _check_parents(folder: Path) -> None:
    """Refuses a folder that cannot be made, before there is anything to lose."""
    near = next(parent for parent in folder.absolute().parents if parent.exists())
    if not os.access(near, os.W_OK):
        raise ValueError(f"--out {folder}: {near} cannot be written to; give another folder")
