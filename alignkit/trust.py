"""What may be imported because a config, a run or a command line names it. Imports nothing heavy.

Whoever installs a package trusts it; whoever writes a config is not trusted. So a path becomes an import
only if it lies in one of ``ALLOWED``, in the package of a plugin that was found, or in a module that the user
named with ``--trust``; and so must what it leads to: ``lightning.os.system`` lies in ``os``.
"""

import importlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from alignkit import catalog
from alignkit.catalog import Catalog

ALLOWED = ("alignkit", "diffusers", "lightning", "peft", "torch.optim", "transformers")


class TrustError(ValueError):
    """Something names code that is not trusted; the message says which, and how to trust it."""


class Trust(NamedTuple):
    """What is trusted besides ``ALLOWED``.

    Args:
        plugins: packages and modules of the plugins that were found; None if none were looked for yet.
        modules: what the user named.
    """

    plugins: frozenset[str] | None = None
    modules: frozenset[str] = frozenset()


_NOTHING = Trust()
_TRUST = ContextVar("_TRUST", default=_NOTHING)


@contextmanager
def trusting(modules: Collection[str], found: Catalog | None = None) -> Iterator[None]:
    """Trusts modules, and all within them, while the block runs.

    Args:
        modules: as ``--trust`` names them.
        found: whose plugins are trusted; those that are installed if there is none.

    Raises:
        TrustError: what is named is no module, or decides itself what is trusted.
    """
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise TrustError(f"--trust {module}: give a module, such as --trust my_package.losses")
        if within(module, ("jsonargparse",)):
            raise TrustError(f"--trust {module}: it decides what may be imported, and is never named")
    before = _TRUST.get()
    plugins = before.plugins if found is None else plugin_modules(found)
    token = _TRUST.set(Trust(plugins, before.modules | set(modules)))
    try:
        yield
    finally:
        _TRUST.reset(token)


def plugin_modules(found: Catalog) -> frozenset[str]:
    """The packages that plugins are in, and the modules of what they offer."""
    return found.packages | {item.target.partition(":")[0] for item in found.components.values()}


def allowed() -> frozenset[str]:
    """Modules that may be imported, with all within them."""
    plugins, modules = _TRUST.get()
    return frozenset(ALLOWED) | (plugin_modules(catalog.discover()) if plugins is None else plugins) | modules


def options() -> list[str]:
    """What a command line says to trust what is trusted now, for one that is to be run again."""
    return [word for module in sorted(_TRUST.get().modules) for word in ("--trust", module)]


def within(path: str, modules: Collection[str]) -> bool:
    """Whether a dotted path lies in one of these modules.

    Example:
        >>> within("torch.optim.AdamW", ["torch.optim"]), within("torch.optimal", ["torch.optim"])
        (True, False)
    """
    parts = path.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts) + 1))


def refusal(path: str, reached: str = "") -> str:
    """Says that a path is not imported, and how to allow it.

    Args:
        path: what was named.
        reached: what it leads to, if that is elsewhere.
    """
    known = ", ".join([*ALLOWED, *sorted(_TRUST.get().modules)])
    led = f" leads to {reached!r}, which" if reached and reached != path else ""
    module = (reached or path).rpartition(".")[0] or path
    return (
        f"{path!r}{led} is refused: it is in no package that is trusted\n"
        f"Trusted are {known}, and the packages of the plugins that `alignkit list` names\n"
        f"Add --trust {module} to the command if you know its code: importing it runs it"
    )


def check(said: Any, name: str) -> None:
    """Refuses a config that names a class elsewhere, before anything of it is read or imported.

    What is assembled by interpolation is looked at when it is imported.

    Args:
        said: a config, or a part of one.
        name: what messages call it.

    Raises:
        TrustError: it does.
    """
    trusted = allowed()
    for key, path in _paths(said):
        if "." in path and "${" not in path and not within(path, trusted):
            raise TrustError(f"{name}: {key}: {refusal(path)}")


def imported(path: str) -> Any:
    """Imports what a dotted path names.

    Raises:
        TrustError: it may not be imported.
        ImportError: there is no such module.
        AttributeError: the module has no such thing.
    """
    trusted = allowed()
    if not within(path, trusted):
        raise TrustError(refusal(path))
    home, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(home), name)
    if not within(lies := _lies(found), trusted):
        raise TrustError(refusal(path, lies))
    return found


def _lies(found: Any) -> str:
    """Where something is defined."""
    if inspect.ismodule(found):
        return found.__name__
    kind = found if inspect.isclass(found) or inspect.isroutine(found) else type(found)
    return f"{kind.__module__}.{kind.__qualname__}"


def _paths(said: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Class paths at any depth, and their keys."""
    if isinstance(said, Mapping):
        for name, value in said.items():
            inner = f"{key}.{name}" if key else str(name)
            if name == "class_path" and isinstance(value, str):
                yield inner, value
            else:
                yield from _paths(value, inner)
    elif isinstance(said, list | tuple):
        for place, value in enumerate(said):
            yield from _paths(value, f"{key}[{place}]")
