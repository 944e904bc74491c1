"""Finds the installed plugins and answers which component a name means. Imports one when it is asked for."""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, NamedTuple

import pluggy

from alignkit import hookspecs
from alignkit.hookspecs import COMMANDS, GROUP, KINDS, Command, Paper

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HOOK = "alignkit_"
COMMAND = "command"


class CatalogError(Exception):
    """A plugin or component that is missing, broken or ambiguous; the message says what to do."""


class Component(NamedTuple):
    """One pluggable class or command: its kind, its name, where it is, and who brings it."""

    kind: str
    name: str
    target: str
    plugin: str
    distribution: str
    help: str = ""


class Failure(NamedTuple):
    """A plugin that could not be used, and why."""

    plugin: str
    distribution: str
    reason: str
    error: Exception | None = None

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution} cannot be used: {self.reason}"


@dataclass(frozen=True)
class Catalog:
    """What is installed, immutable.

    Args:
        components: by (kind, name).
        papers: by plugin name, in order of the plugins.
        failures: plugins that were left out.
        packages: top-level packages that the plugins are in.
        blocked: what was to be left out.
    """

    components: Mapping[tuple[str, str], Component]
    papers: Mapping[str, tuple[Paper, ...]]
    failures: tuple[Failure, ...]
    packages: frozenset[str] = frozenset()
    blocked: tuple[str, ...] = ()

    def names(self, kind: str) -> list[str]:
        """Names of the installed components of a kind, sorted."""
        return sorted(name for k, name in self.components if k == kind)

    def resolve(self, kind: str, name: str) -> Any:
        """Imports the class, or the command's function, that a name means.

        Raises:
            CatalogError: the name is unknown, or its module cannot be imported.
        """
        component = self.components.get((kind, name))
        if component is None:
            raise CatalogError(self._unknown(kind, name)) from next(
                (failure.error for failure in self.failures), None
            )
        module, _, attribute = component.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise CatalogError(
                f"{kind} {name!r} of plugin {component.plugin!r} ({component.distribution}): cannot import "
                f"{component.target}: {_reason(error)}\n"
                f"Repair or reinstall {component.distribution}, or choose another {kind}: {self._list(kind)}"
            ) from error
        if not (callable(found) if kind == COMMAND else inspect.isclass(found)):
            raise CatalogError(
                f"{kind} {name!r} of plugin {component.plugin!r} ({component.distribution}): "
                f"{component.target} is no {'function' if kind == COMMAND else 'class'}. "
                f"Report it to {component.distribution}"
            )
        return found

    def _list(self, kind: str) -> str:
        return ", ".join(self.names(kind)) or "none"

    def _unknown(self, kind: str, name: str) -> str:
        folded = {known.lower(): known for known in self.names(kind)}
        near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=1)]
        hint = f"; did you mean {near[0]!r}?" if near else "."
        lines = [f"unknown {kind} {name!r}{hint} Installed: {self._list(kind)}"]
        lines += [str(failure) for failure in self.failures[:3]]
        return "\n".join(lines)


def discover(blocked: Collection[str] = (), found: Iterable[EntryPoint] | None = None) -> Catalog:
    """Loads the plugins that installed distributions offer.

    A plugin that cannot be imported, that misspells a hook or answers one wrongly is left out and named in
    ``Catalog.failures``: it hurts only those who want it.

    Args:
        blocked: names of plugins or of distributions to leave out.
        found: entry points to read in place of the installed ones.

    Raises:
        CatalogError: two plugins or two components of a kind have one name; nothing has a blocked name.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    failures: list[Failure] = []
    components: dict[tuple[str, str], Component] = {}
    papers: dict[str, tuple[Paper, ...]] = {}
    packages: set[str] = set()
    for name, (entry, distribution) in _unique(
        entry_points(group=GROUP) if found is None else found, blocked
    ).items():
        try:
            plugin = entry.load()
            _refuse_unknown_hooks(plugin)
            manager.register(plugin, name=name)
            offered = [
                Component(kind, key, _checked_target(hook, key, target), name, distribution)
                for kind, hook in KINDS.items()
                for key, target in _call(manager, hook, plugin)
            ]
            offered += [
                Component(COMMAND, key, _command_target(key, command), name, distribution, command.help)
                for key, command in _call(manager, "alignkit_commands", plugin)
            ]
            papers[name] = tuple(_call(manager, "alignkit_papers", plugin))
        except Exception as error:  # whatever a stranger's module raises: named, and survived
            failures.append(Failure(name, distribution, _reason(error), error))
            continue
        packages.add(entry.module.partition(".")[0])
        for component in offered:
            _refuse_second(components.get((component.kind, component.name)), component)
            components[component.kind, component.name] = component
    return Catalog(
        MappingProxyType(components),
        MappingProxyType(papers),
        tuple(failures),
        frozenset(packages),
        tuple(blocked),
    )


def _reason(error: Exception) -> str:
    """An error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _unique(found: Iterable[EntryPoint], blocked: Collection[str]) -> dict[str, tuple[EntryPoint, str]]:
    """Entry points by plugin name. One distribution seen twice on ``sys.path`` counts once."""
    unique: dict[str, tuple[EntryPoint, str]] = {}
    seen: set[str] = set()
    for entry in found:
        name = entry.dist.name if entry.dist else "an unnamed distribution"
        distribution = f"{name} {entry.dist.version}" if entry.dist else name
        seen |= {entry.name, name}
        if entry.name in blocked or name in blocked:
            continue
        if entry.name in unique:
            other_entry, other = unique[entry.name]
            if other == distribution and other_entry.value == entry.value:
                continue
            raise CatalogError(
                f"two plugins are named {entry.name!r}: one of {other}, one of {distribution}.\n"
                f"Uninstall one, or block one: alignkit -p no:{name} ..."
            )
        unique[entry.name] = (entry, distribution)
    if absent := sorted(set(blocked) - seen):
        raise CatalogError(
            f"-p no:{absent[0]}: no plugin and no distribution has that name; "
            f"there are {', '.join(sorted(seen))}"
        )
    return dict(sorted(unique.items()))


def _refuse_unknown_hooks(plugin: object) -> None:
    known = [name for name in vars(hookspecs) if name.startswith(_HOOK)]
    for name in dir(plugin):
        if name.startswith(_HOOK) and callable(getattr(plugin, name)) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise CatalogError(
                f"{name} is no hook of alignkit" + (f"; did you mean {near[0]}?" if near else "")
            )


def _call(manager: pluggy.PluginManager, hook: str, plugin: object) -> list[Any]:
    """What one plugin answers to one hook: the items of a mapping, or the elements of an iterable."""
    others = [other for other in manager.get_plugins() if other is not plugin]
    answers = manager.subset_hook_caller(hook, remove_plugins=others)()
    if not answers:
        return []
    if hook in (*KINDS.values(), "alignkit_commands") and not isinstance(answers[0], Mapping):
        raise CatalogError(
            f"{hook} must return a mapping of names to 'package.module:Class', got {answers[0]!r}"
        )
    return list(answers[0].items() if isinstance(answers[0], Mapping) else answers[0])


def _checked_target(hook: str, name: str, target: object) -> str:
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise CatalogError(f"{hook}: {name!r} must be 'package.module:Class', got {target!r}")
    if target.partition(":")[2] != name:
        raise CatalogError(f"{hook}: {name!r} must be the name of its class, got {target!r}")
    return target


def _command_target(name: str, command: object) -> str:
    if not isinstance(command, Command) or not _TARGET.fullmatch(command.target):
        raise CatalogError(
            f"alignkit_commands: {name!r} must be a Command of 'package.module:function', got {command!r}"
        )
    if not re.fullmatch(r"[a-z][a-z-]*", name):
        raise CatalogError(f"alignkit_commands: a name must be of lower-case letters and '-', got {name!r}")
    if name in COMMANDS:
        raise CatalogError(f"alignkit_commands: {name!r} is a command of alignkit's own")
    return command.target


def _refuse_second(first: Component | None, second: Component) -> None:
    if first is not None:
        raise CatalogError(
            f"{second.kind} {second.name!r} is offered by plugin {first.plugin!r} ({first.distribution}) "
            f"and by plugin {second.plugin!r} ({second.distribution}).\n"
            f"Block one: alignkit -p no:{first.plugin} ... or alignkit -p no:{second.plugin} ..."
        )


def print_failures(catalog: Catalog) -> None:
    """Says on standard error which plugins were left out, and how to go on without hearing of it."""
    for failure in catalog.failures:
        print(f"alignkit: warning: {failure}", file=sys.stderr)
        print(
            f"Repair or uninstall it, or leave it out: alignkit -p no:{failure.plugin} ...", file=sys.stderr
        )
