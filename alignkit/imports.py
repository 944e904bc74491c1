"""Holds the parser to what is trusted, wherever a value becomes an import."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from alignkit import trust

# resolvers of omegaconf that read the environment, and import what a text names
REFUSED: Mapping[str, Callable[..., Any]] = {"oc.env": oc.env, "oc.coerce": oc.coerce}
# whether a block is open
_HELD = ContextVar("_HELD", default=False)


@contextmanager
def only_trusted() -> Iterator[None]:
    """Within the block the parser imports what is trusted and nothing else, and configs read no environment.

    It checks a path before it imports it, and then what that leads to. Where any value may stand, a class
    path stays what it says, and nothing is made of it.
    """
    before: dict[str, Any] = dict(parsing_settings)  # they are the process's: others may parse, too
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=sorted(trust.allowed()),
        instantiate_subclass_spec_in_any=False,
    )
    outer = _HELD.set(True)
    _resolve({name: partial(_refuse, name) for name in REFUSED})
    try:
        yield
    finally:
        _HELD.reset(outer)
        if not _HELD.get():
            _resolve(REFUSED)
        parsing_settings.update(before)


def _resolve(resolvers: Mapping[str, Callable[..., Any]]) -> None:
    for name, resolver in resolvers.items():
        OmegaConf.register_resolver(name, resolver, replace=True, annotation_validation="off")


def _refuse(name: str, *_: object) -> NoReturn:
    raise trust.TrustError(f"{name} is not for configs, which read no environment and import nothing by it")
