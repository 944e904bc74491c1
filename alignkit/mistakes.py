"""A user's mistakes in a few words: what the parser says of them, without its nesting. Imports no torch."""

import ast
import difflib
import dis
import inspect
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import yaml

from alignkit import trust

MISSING = object()
# of a config, once its aliases are written out
MAX_VALUES = 100_000
# packages that alignkit knows of and does without: names to install, as no stranger's typo is
OPTIONAL = ("bitsandbytes",)
_NOISE = (
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Subclass types expect",
    "a class path (str)",
    "a dict with",
    "Expected a path but",
)
_CALLABLE = re.compile(r"Type typing\.Callable\[.*?\] expects a function or a callable class: ")
# how the parser refuses an import: alignkit.imports
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


class UsageError(Exception):
    """A mistake on the command line or in a config, in words."""


class Given:
    """What the user wrote: options of the command line, and configs by the name they were given.

    Args:
        arguments: the command line behind the command.
        configs: contents of the configs, in order.
    """

    def __init__(self, arguments: Sequence[str], configs: Mapping[str, Mapping[str, Any]]) -> None:
        self.configs = configs
        self.options: dict[str, str] = {}
        for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
            if argument.startswith("--"):
                name, equals, value = argument[2:].partition("=")
                self.options[name] = value if equals or following.startswith("--") else following

    def find(self, key: str) -> tuple[str, Any]:
        """Where a key was given, as a prefix of a message, and its value there or MISSING."""
        if key in self.options:
            return f"--{key}", self.options[key]
        for name, config in reversed(list(self.configs.items())):
            value = _within(config, key.split("."))
            if value is not MISSING:
                return f"{name}: {key}", value
        return key, MISSING


def _within(config: Any, path: Sequence[str]) -> Any:
    """The value at a path; a component's arguments stand beside its name or under ``init_args``."""
    for part in path:
        if isinstance(config, list):  # the key of one of its items
            values = (_within(item, [part]) for item in config)
            config = next((value for value in values if value is not MISSING), MISSING)
        elif not isinstance(config, Mapping):
            return MISSING
        elif part in config:
            config = config[part]
        else:
            config = (config.get("init_args") or {}).get(part, MISSING)
    return config


class Finding(NamedTuple):
    """One reason why the parser refused: under which key, of which class."""

    key: str
    owner: str
    reason: str
    depth: int


def read_config(path: Path, name: str) -> dict[str, Any]:
    """Reads a config only to see that it can be read.

    Raises:
        UsageError: it is no YAML, no mapping, or larger than any config.
        TrustError: it names a class of a package that is not trusted.
    """
    try:
        content = parsed(path.read_text(encoding="utf-8"))
        too_many = _num_values(content, {}) > MAX_VALUES
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is no text file in UTF-8 ({error.reason})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        hint = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise UsageError(f"{name}{place}: is no YAML: {error.problem}{hint}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: is no YAML: {' '.join(str(error).split())}") from error
    if too_many:
        raise UsageError(f"{name}: is no config: its aliases stand for more than {MAX_VALUES} values")
    if content is None:
        raise UsageError(f"{name}: is empty; it must say at least one key, such as objective: NAME")
    if not isinstance(content, dict):
        raise UsageError(f"{name}: must map keys to values, such as objective: NAME, got {shown(content)}")
    trust.check(content, name)
    return content


def parsed(text: str) -> Any:
    """What YAML says.

    Raises:
        yaml.YAMLError: it says nothing, or a value that there is not, such as the date 2001-13-45.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise yaml.YAMLError(f"one of its values cannot be: {error}") from error


def _num_values(value: Any, known: dict[int, float]) -> float:
    """How many values there are, each alias counted as what it stands for; infinite where it holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(value)]


def explained(
    text: str, command: str, given: Given, known: Collection[str], installed: Mapping[str, Sequence[str]]
) -> str:
    """What a refusal of the parser means.

    Args:
        text: what the parser said.
        command: name of the command; the parser puts it before every key.
        given: what the user wrote.
        known: keys that the command takes.
        installed: by the key that names a component, the names that it may have.
    """
    text = text.replace(f"{command}.", "")
    plain = _plain(text, command, given, known, installed)
    if plain:
        return plain
    findings = _findings(text)
    if denied := _DENIED.search(text):
        return _untrusted(denied[1], text, findings, given, installed)
    if not findings:
        return " ".join(text.split())
    best = max(findings, key=lambda finding: finding.depth)
    where, value = given.find(best.key)
    if match := re.match(r"Option '([^']+)' is not accepted", best.reason):
        return _unknown_argument(best, match[1], given)
    if match := re.match(r"the following arguments are required: (.+)", best.reason):
        first = match[1].split(",")[0]
        how = f"give it beside the name, or as --{best.key}.{first}"
        return f"{where}: {_short(best.owner)} needs {match[1]}; {how}"
    if re.search(r"No module named|has no attribute", best.reason):
        package = next((name for name in OPTIONAL if f"No module named {name!r}" in best.reason), "")
        if package:
            return (
                f"{where}: needs the package {package}, which is not installed: pip install {package}; or "
                f"choose another{_choices(best.key, installed)}"
            )
        return f"{where}: cannot import {best.owner!r}: {best.reason}{_choices(best.key, installed)}"
    if match := re.match(
        r"Import path (?:(\S+) )?does not (?:correspond to a subclass of|implement)", best.reason
    ):
        base = best.reason.split()[-1]
        named = value.get("class_path", value) if isinstance(value, Mapping) else value
        return f"{where}: {shown(named)} is no {base}{_choices(best.key, installed)}"
    if re.match(r"Not a valid subclass|Expected an import path", best.reason):
        got = "" if value is MISSING else f", got {shown(value)}"
        allowed = f"must be a name, or a mapping with name or class_path{got}"
        return f"{where}: {allowed}{_choices(best.key, installed)}"
    if best.reason.startswith("Expected a"):
        same = [finding for finding in findings if (finding.depth, finding.key) == (best.depth, best.key)]
        return _wrong_type(same, where, value)
    return f"{where}: {best.reason}"


def _plain(
    text: str, command: str, given: Given, known: Collection[str], installed: Mapping[str, Sequence[str]]
) -> str:
    """Explains a refusal that has one line; empty if it has more."""
    if match := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", text):
        where, _ = given.find(match[1])
        return f"{where}: unknown key{_hint(match[1], known)}\nalignkit {command} --help lists the keys"
    if match := re.match(r"unrecognized arguments: (\S+)", text):
        option = match[1].partition("=")[0]
        if not option.startswith("-"):
            return f"unexpected argument {option!r}; options start with --, such as --config FILE"
        hint = _hint(option.lstrip("-"), known, "--")
        return f"unknown option {option}{hint}\nalignkit {command} --help lists the options"
    if match := re.match(r"argument --([\w.]+): expected (?:one|at least one) argument", text):
        option = next((name for name, value in given.options.items() if not value), match[1])
        return f"--{option}: needs a value, such as --{option}=VALUE"
    required = re.match(r"the following arguments are required: (.+)", text)
    if required or re.search(r"Expected an import path or a subclass spec, but got None", text):
        if not given.configs:
            return (
                f"no config: give one, such as alignkit {command} --config FILE\n"
                "alignkit list --configs lists those that come with alignkit"
            )
        match = re.match(r'Parser key "([^"]+)"', text)
        missing = required[1].split(", ") if required else [match[1] if match else ""]
        return f"{', '.join(missing)}: missing in the config{_choices(missing[0], installed)}"
    return ""


def _findings(text: str) -> list[Finding]:
    """Leaves of the parser's tree of reasons, which it draws by indentation."""
    findings: list[Finding] = []
    stack: list[tuple[int, str, str]] = []
    for line in text.splitlines():
        body = re.sub(r"^[ -]*(?=[^ -]|$)", "", line)
        indent = len(line) - len(body)
        owner = re.search(r"Namespace\(class_path='([\w.]+)'", body) if _CALLABLE.search(body) else None
        body = re.sub(r"\. Got value: Namespace\(.*", "", _CALLABLE.sub("", body))
        if not body or body.startswith(_NOISE):
            continue
        stack = [entry for entry in stack if entry[0] < indent]
        if owner:
            stack.append((indent - 1, "class", owner[1]))
        if match := re.fullmatch(r'Parser key "([^"]+)":', body):
            stack.append((indent, "key", match[1]))
        elif match := re.fullmatch(r"Problem with given class_path '([^']+)':", body):
            stack.append((indent, "class", match[1]))
        else:
            key = ".".join(value for _, kind, value in stack if kind == "key")
            classes = [value for _, kind, value in stack if kind == "class"]
            findings.append(Finding(key, classes[-1] if classes else "", body, len(stack)))
    useful = [finding for finding in findings if "NoneType" not in finding.reason]
    return useful or findings


def _untrusted(
    path: str, text: str, findings: Sequence[Finding], given: Given, installed: Mapping[str, Sequence[str]]
) -> str:
    """Says what must not be imported, and under which key it was named."""
    asked = re.search(r"--([\w.]+): Importing", text)  # an option that explains a class
    key = asked[1] if asked else next((find.key for find in findings if _DENIED.search(find.reason)), "")
    where, value = given.find(key)
    named = value.get("class_path") if isinstance(value, Mapping) else value
    said = named if isinstance(named, str) and re.fullmatch(r"\w+(\.\w+)+", named) else path
    return f"{where}: " * bool(where) + trust.refusal(said, path) + _choices(key, installed)


def _unknown_argument(finding: Finding, name: str, given: Given) -> str:
    where, _ = given.find(f"{finding.key}.{name}")
    owner = _short(finding.owner)
    takes = _arguments(finding.owner)
    hint = _hint(name, takes)
    return f"{where}: {owner} has no argument {name!r}{hint}\nIts arguments: {listed(takes, 12)}"


def _wrong_type(findings: Sequence[Finding], where: str, value: Any) -> str:
    allowed: list[str] = []
    got = ""
    for finding in findings:
        match = re.match(r"Expected an? (.+?)(?:\. Got value: (.*))?$", finding.reason)
        if not match or match[1].startswith("dot import path"):
            continue
        got = match[2] or got
        choices = re.fullmatch(r"typing\.Literal(\[.*\])", match[1])
        if choices:
            allowed += [str(choice) for choice in ast.literal_eval(choices[1])]
        else:
            name = re.sub(r"<class '(.*)'>", r"\1", match[1]).partition("[")[0].rpartition(".")[2]
            allowed.append(_TYPES.get(name, f"a {name}"))
    written = shown(value) if value is not MISSING else repr(got)
    *others, last = dict.fromkeys(allowed or ["a class path, or a mapping of its arguments"])
    return f"{where}: must be {', '.join(others)}{' or ' * bool(others)}{last}, got {written}"


def interpolation(error: Exception, command: str, given: Given) -> str:
    """What a refusal of an interpolation means."""
    lines = str(error).replace(f"{command}.", "").splitlines()
    full = next((line.split(":", 1)[1].strip() for line in lines if "full_key:" in line), "")
    where, value = given.find(full.replace("init_args.", ""))
    if match := re.match(r"Interpolation key '([^']+)' not found", lines[0]):
        head, _, tail = match[1].partition(".")
        how = "correct it, or give that key a value"
        if head == "vars":
            how = f"give it with --vars.{tail} VALUE, or under vars in the config"
        return f"{where}: ${{{match[1]}}} stands for nothing; {how}"
    written = "" if value is MISSING else f" {shown(value)}"
    return f"{where}: cannot read{written}; an interpolation looks like ${{vars.NAME}}\n{lines[0][:120]}"


def cause(error: BaseException) -> BaseException:
    """The error of a constructor, out of those that the parser wraps around it."""
    while error.__cause__ is not None and module(error).partition(".")[0] == "jsonargparse":
        error = error.__cause__
    return error


def is_refusal(error: BaseException) -> bool:
    """Whether a ``raise`` made the error, and not an operation that failed: a mistake, and not a defect."""
    last = _last(error)
    return last is not None and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def module(error: BaseException) -> str:
    """Name of the module that raised."""
    last = _last(error)
    return "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))


def _last(error: BaseException) -> TracebackType | None:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last


def _arguments(path: str) -> list[str]:
    """Names of a class's arguments; those that an optimizer is given by us are left out."""
    try:
        parameters = inspect.signature(trust.imported(path)).parameters.values()
    except (ImportError, AttributeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in kinds and p.name != "params"]


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = [match for match in difflib.get_close_matches(name, list(known), 1) if match != name]
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _choices(key: str, installed: Mapping[str, Sequence[str]]) -> str:
    return f"\nInstalled: {listed(installed[key])}" if installed.get(key) else ""


def listed(names: Collection[str], most: int = 8) -> str:
    """Names in a row, not too many."""
    row = ", ".join(list(names)[:most]) or "none"
    return row + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(value: object) -> str:
    """A value as it may stand in a message."""
    text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
