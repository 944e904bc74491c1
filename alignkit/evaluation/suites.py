"""What models are evaluated on: a suite by name, a file, or the held-out prompts of a run."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from alignkit.building import build
from alignkit.catalog import Catalog
from alignkit.components import PromptSuite
from alignkit.evaluation.promptfiles import READERS, read_prompts
from alignkit.evaluation.results import Prompt
from alignkit.files import sha256
from alignkit.naming import expand, inline

KIND = "suite"
Value = TypeVar("Value")


class Suite(NamedTuple):
    """Prompts to be drawn, each once.

    Args:
        name: what the suite is called.
        prompts: what is drawn.
        files: hashes of the files that they stand in, sha256, by name.
        known: how many there were before only some were taken.
        remarks: what a reader should know of it.
    """

    name: str
    prompts: tuple[Prompt, ...]
    files: Mapping[str, str]
    known: int
    remarks: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A hash of the texts, in their order."""
        return hashlib.sha256(json.dumps([prompt.text for prompt in self.prompts]).encode()).hexdigest()


class PromptFile(PromptSuite):
    """Prompts of one's own.

    Args:
        path: a .txt file with a prompt a line; or .jsonl, .json, .csv, .tsv or .parquet with columns.
        prompt: the column of prompts; "prompt", "caption" or "text" without it.
        category: the column of categories; "category", if there is one, without it.
    """

    def __init__(self, path: str, prompt: str | None = None, category: str | None = None) -> None:
        self.path, self.prompt, self.category = Path(path), prompt, category

    def prompts(self) -> list[Prompt]:
        return read_prompts(self.path, "--suite", prompt=self.prompt, category=self.category)

    def files(self) -> dict[str, Path]:
        return {self.path.name: self.path}


def named_suite(catalog: Catalog, said: str) -> tuple[str, PromptSuite]:
    """Finds what ``--suite`` says, and what to call it.

    Args:
        catalog: what is installed.
        said: the name of a suite in any case, a file, ``{name: NAME, ...}`` with its settings, or
            ``{path: FILE, prompt: COLUMN}``.

    Raises:
        ValueError: there is no such suite.
    """
    if said.startswith("{"):
        return _with_settings(catalog, said, inline(KIND, said))
    path = Path(said)
    if path.is_file() or path.suffix.lower() in READERS:
        return path.stem, PromptFile(said)
    installed = {name.lower(): name for name in catalog.names(KIND)}
    if said.lower() not in installed:
        near = difflib.get_close_matches(said.lower(), installed, n=1)
        hint = f"; did you mean {installed[near[0]]}?" if near else ""
        raise ValueError(
            f"--suite {said}: no suite and no file has that name{hint}\n"
            f"Installed: {', '.join(installed.values()) or 'none'}; files end in {', '.join(READERS)}"
        )
    name = installed[said.lower()]
    return name, _built(expand(catalog, KIND, name), said)


def drawn_of(name: str, prompts: Sequence[Prompt], *, max_prompts: int | None = None) -> Suite:
    """Each prompt once, without empty ones; of those so many, evenly spread.

    Raises:
        ValueError: none is left.
    """
    stripped = [Prompt(prompt.text.strip(), prompt.category.strip()) for prompt in prompts]
    texts = {prompt.text: prompt for prompt in reversed(stripped) if prompt.text}  # the first of each
    once = [texts[text] for text in dict.fromkeys(prompt.text for prompt in stripped) if text]
    if not once:
        raise ValueError(f"--suite {name}: there are no prompts in it")
    remarks = []
    empty = sum(not prompt.text for prompt in stripped)
    if empty:
        remarks.append(f"{empty} empty prompts were left out")
    if again := len(stripped) - empty - len(once):
        remarks.append(f"{again} prompts that come again are drawn once")
    spread = evenly(once, max_prompts or len(once))
    return Suite(name, tuple(spread), {}, len(once), tuple(remarks))


def evenly(values: Sequence[Value], most: int) -> list[Value]:
    """Some of them, evenly spread, from the first on.

    Example:
        >>> evenly("abcdefghij", 4), evenly("abc", 9), evenly("abc", 0)
        (['a', 'c', 'f', 'h'], ['a', 'b', 'c'], [])
    """
    count = min(most, len(values))
    return [values[i * len(values) // count] for i in range(count)]


def read_suite(name: str, suite: PromptSuite, *, max_prompts: int | None = None) -> Suite:
    """Reads a suite, and says what is odd about it.

    Raises:
        ValueError: it cannot be read, or has no prompts.
    """
    prompts = suite.prompts()
    found = drawn_of(name, prompts, max_prompts=max_prompts)
    remarks = found.remarks
    if suite.known_count is not None and len(prompts) != suite.known_count:
        remarks = (f"{name} is known to have {suite.known_count} prompts, here are {len(prompts)}", *remarks)
    return found._replace(files={key: sha256(path) for key, path in suite.files().items()}, remarks=remarks)


def _with_settings(catalog: Catalog, said: str, settings: Any) -> tuple[str, PromptSuite]:
    if not isinstance(settings, dict):
        raise ValueError(f"--suite {said}: must be a mapping such as {{path: FILE, prompt: COLUMN}}")
    if "name" not in settings and "class_path" not in settings:
        path = f"{PromptFile.__module__}.{PromptFile.__qualname__}"
        suite = _built({"class_path": path, "init_args": settings}, said)
        return Path(str(settings.get("path"))).stem, suite
    expanded = expand(catalog, KIND, settings)
    return str(expanded["class_path"]).rpartition(".")[2], _built(expanded, said)


def _built(settings: Mapping[str, Any], said: str) -> PromptSuite:
    suite: PromptSuite = build({KIND: settings}, (KIND,), name=f"--suite {said}")[KIND]
    return suite
