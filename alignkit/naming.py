"""From the names that configs and command lines use to what jsonargparse reads."""

import difflib
import inspect
import json
import re
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from torch import optim

from alignkit import mistakes
from alignkit.catalog import Catalog
from alignkit.configfiles import find_config
from alignkit.mistakes import UsageError

# where a config names a component: the path of its key, and the kind
PLACES = {
    "objective": "objective",
    "weighting": "weighting",
    "sampler": "sampler",
    "conditioner": "conditioner",
    "backbone": "backbone",
    "data.train": "source",
    "data.validation": "source",
    "evaluation.rewards": "reward",
    "evaluation.features": "features",
    "optimizer": "optimizer",
}
OPTIMIZERS = sorted(
    name for name, item in vars(optim).items() if inspect.isclass(item) and item is not optim.Optimizer
)
_REFERENCE = re.compile(r"\$\{(?!\.)([A-Za-z_]\w*(?:[.\[][^:{}]*)?)\}")  # ${a.b}; not ${.b}, not ${oc.env:X}


def defaults(cls: type) -> dict[str, Any]:
    """A class's own default arguments, as a config writes them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "x")
    values = parser.get_defaults().as_dict().get("x") or {}
    optional = {n for n, p in inspect.signature(cls).parameters.items() if p.default is not p.empty}
    return {name: value for name, value in values.items() if name in optional}


def named(catalog: Catalog, kind: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Expands a component's name.

    It starts from its own defaults: nothing leaks from the one named before.
    """
    if not isinstance(name, str):
        raise UsageError(f"{kind}: its name must be text, got {name!r}")
    if kind == "optimizer":
        if name not in OPTIMIZERS:
            raise UsageError(unknown_optimizer(name))
        path, cls = f"torch.optim.{name}", getattr(optim, name)
    else:
        cls = catalog.resolve(kind, name)
        path = f"{cls.__module__}.{cls.__qualname__}"
    return {"class_path": path, "init_args": {**defaults(cls), **arguments}}


def unknown_optimizer(name: str) -> str:
    """Says which are known."""
    folded = {known.lower(): known for known in OPTIMIZERS}
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=1)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"unknown optimizer {name!r}{hint}\ntorch.optim has {', '.join(OPTIMIZERS)}\n"
        "Others are named by their path, such as bitsandbytes.optim.AdamW8bit with --trust bitsandbytes"
    )


def expand(catalog: Catalog, kind: str, value: Any) -> Any:
    """Turns what a config says of a component into what jsonargparse reads.

    A config says ``NAME``, or ``{name: NAME, beta: 2000}``, or ``{class_path: ..., init_args: ...}``.
    """
    if isinstance(value, list):
        return [expand(catalog, kind, item) for item in value]
    if isinstance(value, str):
        return {"class_path": value} if "." in value else named(catalog, kind, value, {})
    if not isinstance(value, dict):
        return value
    if "name" in value:
        if "class_path" in value:
            raise UsageError(
                f"{kind}: give name or class_path, not both; got name {mistakes.shown(value['name'])} "
                f"and class_path {mistakes.shown(value['class_path'])}"
            )
        return named(catalog, kind, value["name"], {k: v for k, v in value.items() if k != "name"})
    if "class_path" in value and "." not in str(value["class_path"]):
        return {**value, **named(catalog, kind, value["class_path"], value.get("init_args") or {})}
    if value and not {"class_path", "init_args", "dict_kwargs"} & value.keys():
        return {"init_args": value}
    return value


def expand_config(catalog: Catalog, config: dict[str, Any]) -> dict[str, Any]:
    """Expands every component that a config names."""
    config = dict(config)
    for place, kind in PLACES.items():
        head, _, tail = place.partition(".")
        if not tail and head in config:
            config[head] = expand(catalog, kind, config[head])
        elif tail and isinstance(config.get(head), dict) and tail in config[head]:
            config[head] = {**config[head], tail: expand(catalog, kind, config[head][tail])}
    return config


def expand_arguments(catalog: Catalog, arguments: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Expands components named on the command line, and finds and reads the configs."""
    expanded, rest = [], iter(arguments)
    configs: dict[str, dict[str, Any]] = {}
    for argument in rest:
        match = re.fullmatch(
            r"--(config|c|" + "|".join(map(re.escape, PLACES)) + r")(\.help)?(?:=(.*))?", argument, re.S
        )
        match = match or re.fullmatch(r"-(c)()(?:=(.*))?", argument)
        if not match:
            expanded.append(argument)
            continue
        place, suffix, value = match[1], match[2] or "", match[3]
        if value is None:
            value = next(rest, "")
        if not value:
            listing = "alignkit list --configs" if place in ("config", "c") else "alignkit list"
            raise UsageError(f"{argument.rstrip('=')}: needs a value; {listing} says what there is")
        if place in ("config", "c"):
            path = find_config(value)
            configs[value] = mistakes.read_config(path, value)
            expanded.append(f"--config={path}")
        elif suffix and PLACES[place] == "optimizer":
            expanded.append(f"--{place}.help={named(catalog, 'optimizer', value, {})['class_path']}")
        elif suffix and re.fullmatch(r"\w+", value):
            cls = catalog.resolve(PLACES[place], value)
            expanded.append(f"--{place}.help={cls.__module__}.{cls.__qualname__}")
        elif re.fullmatch(r"[A-Za-z]\w*", value) and value not in ("null", "None"):
            expanded.append(f"--{place}={json.dumps(named(catalog, PLACES[place], value, {}))}")
        elif value[0] in "[{":
            expanded.append(f"--{place}={json.dumps(expand(catalog, PLACES[place], inline(place, value)))}")
        else:
            expanded.append(f"--{place}{suffix}={value}")
    return expanded, configs


def inline(place: str, text: str) -> Any:
    """Reads a list or mapping that stands on the command line."""
    try:
        return mistakes.parsed(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--{place}: is no YAML: {mistakes.shown(text)}") from error


def absolute(value: Any, command: str) -> Any:
    """Rewrites ``${a.b}`` to ``${<command>.a.b}``: the root of an interpolation is the main parser."""
    if isinstance(value, str):
        return _REFERENCE.sub(
            lambda m: m[0] if m[1].startswith(f"{command}.") else f"${{{command}.{m[1]}}}", value
        )
    if isinstance(value, dict):
        return {name: absolute(item, command) for name, item in value.items()}
    if isinstance(value, list):
        return [absolute(item, command) for item in value]
    return value
