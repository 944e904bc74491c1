"""Nested values as JSON and tensors, and back, without loss; a value of any other kind is refused."""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# by the names that safetensors has for them
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_HELD = "tensors, numbers, texts, True, False, None, and lists, tuples and dicts of them"


def taken_apart(value: Any, reserved: str) -> tuple[Any, dict[str, Tensor]]:
    """What JSON can hold of a value, and its tensors by name.

    JSON's own kinds stand for themselves. Any other is a mapping of one key, which says what it is:
    ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, ``{"float": "nan"}``, ``{"tensor": name}``.

    Args:
        value: of tensors, numbers, texts, bools, None, lists, tuples and dicts.
        reserved: a name that no tensor may have.

    Raises:
        ValueError: there is something else in it.
    """
    tensors: dict[str, Tensor] = {}

    def apart(value: Any, path: tuple[str, ...]) -> Any:
        # subclasses, such as numpy's numbers, would come back as something else
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is list:
            return [apart(item, (*path, str(place))) for place, item in enumerate(value)]
        if kind is tuple:
            return {"tuple": [apart(item, (*path, str(place))) for place, item in enumerate(value)]}
        if kind in _MAPPINGS:
            return {
                _MAPPINGS[kind]: [
                    [apart(key, (*path, "key")), apart(item, (*path, str(key)))]
                    for key, item in value.items()
                ]
            }
        if kind in (Tensor, DTensor) and value.layout is torch.strided and value.dtype in DTYPES:
            # safetensors takes no halves of characters
            name = "/".join(path).encode("utf-8", "backslashreplace").decode()
            while name in tensors or name == reserved:
                name += "'"
            tensors[name] = value
            return {"tensor": name}
        what = f"{kind.__module__}.{kind.__qualname__}"
        what = f"{value.layout} {value.dtype} tensor" if kind in (Tensor, DTensor) else what
        raise ValueError(f"{'/'.join(path)} is a {what}; a checkpoint holds {_HELD}")

    return apart(value, ()), tensors


def put_together(tree: Any, tensor: Callable[[str], Tensor | None]) -> Any:
    """The value that ``taken_apart`` was given.

    Args:
        tree: what JSON held of it.
        tensor: gives a tensor by its name.

    Raises:
        ValueError: it says of something that it is what nothing can be.
    """
    if isinstance(tree, list):
        return [put_together(item, tensor) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    ((kind, held),) = tree.items()
    if kind == "tensor":
        return tensor(held)
    if kind == "float":
        return float(held)
    if kind == "tuple":
        return tuple(put_together(item, tensor) for item in held)
    for mapping, name in _MAPPINGS.items():
        if kind == name:
            return mapping({put_together(key, tensor): put_together(item, tensor) for key, item in held})
    raise ValueError(f"holds a {kind!r}, which this version does not know")
