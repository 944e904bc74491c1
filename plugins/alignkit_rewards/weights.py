"""Networks out of files. Tensors are all that is read: no code of a file or of a hub id runs."""

import json
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging

from alignkit.modelcode import refuse_code
from alignkit_rewards.places import Place

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, pickle.UnpicklingError)


def read_tensors(file: Path, owner: str) -> dict[str, Tensor]:
    """Reads a checkpoint's tensors: safetensors, or a pickle of nothing else (``weights_only``).

    Raises:
        ValueError: there is something else in it.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(
            f"{owner}: cannot read {str(file)!r}: {_reason(error)}\n"
            "Only tensors are read, of a safetensors file or of what torch.save wrote; a pickle that needs "
            "code is never run. Save its state_dict again as safetensors where you trust it"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(
            f"{owner}: {str(file)!r} must hold tensors by name, or have them under 'state_dict'; give a "
            "state_dict"
        )
    return found


def config_of(place: Place, types: Collection[str], owner: str) -> dict[str, Any]:
    """Reads ``config.json``.

    Args:
        place: a model's folder.
        types: what its ``model_type`` may be.
        owner: class that reads it, for messages.

    Raises:
        ValueError: it is of another architecture, or asks for code of its own.
    """
    config: dict[str, Any] = json.loads((place.root / "config.json").read_text(encoding="utf-8"))
    refuse_code(config, place.named, owner)
    if config.get("model_type") not in types:
        raise ValueError(
            f"{owner}: {place.named!r} is a {config.get('model_type', 'model without a model_type')!r}, but "
            f"must be one of {', '.join(types)}; give another folder or hub id"
        )
    return config


def load(kind: Any, place: Place, types: Collection[str], owner: str) -> Any:
    """Loads a transformers class from a folder, frozen and in float32.

    Raises:
        ValueError: it is another model's folder, or weights are missing or cannot be read.
    """
    config_of(place, types, owner)
    return _network(kind, place.root, f"{place.named!r}", owner)


def built(
    kind: Any, config: Any, weights: Mapping[str, Tensor], named: str, owner: str, **options: object
) -> Any:
    """A transformers class of a config, with given weights, frozen and in float32.

    Args:
        kind: the class.
        config: its config.
        weights: by the class's names.
        named: where they come from, for messages.
        owner: class that reads it, for messages.
        **options: of the class's constructor.

    Raises:
        ValueError: weights are missing, or of other shapes.
    """
    return _network(kind, None, named, owner, config=config, state_dict=dict(weights), **options)


def _network(kind: Any, root: Path | None, named: str, owner: str, **given: Any) -> Any:
    try:
        with _quiet():
            network, report = kind.from_pretrained(
                root,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                weights_only=True,
                **given,
            )
    except UNREADABLE as error:
        raise ValueError(
            f"{owner}: cannot make a {kind.__name__} of {named}: {_reason(error)}\n"
            "Its weights must be tensors, of the names and shapes of that class; a pickle that needs code "
            "is never run"
        ) from error
    # transformers fills what is missing, or does not fit, with random numbers
    if report["mismatched_keys"]:
        name, has, must = min(report["mismatched_keys"])
        raise ValueError(
            f"{owner}: {named} has {name} of shape {tuple(has)}, but a {kind.__name__} of this config needs "
            f"{tuple(must)}; it is another kind of model"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{owner}: {named} lacks {len(missing)} weights of a {kind.__name__}, such as {missing[0]}; it "
            "is another kind of model, or not whole"
        )
    return network.eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out transformers' report of what did not fit: what matters of it becomes an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
