"""Whatever a checkpoint may hold comes back as it was; whatever happens to its file is noticed."""

import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.checkpoints import read, write
from alignkit.checkpoints.values import DTYPES, put_together, taken_apart
from tests.unit.test_checkpoint_values import assert_same

TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates among them
# words that the format itself uses
WORDS = st.sampled_from(
    ["tensor", "tuple", "dict", "float", "ordered", "counter", "__metadata__", "a/b", "a", "b"]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | WORDS
KEYS = st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | WORDS | st.none()


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(list(DTYPES)))
    size = torch.Size(shape).numel() * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        content = bytes(byte & 1 for byte in content)
    flat = (
        torch.frombuffer(bytearray(content), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    )
    return flat.view(dtype).view(shape)


def nested(leaves: Any) -> Any:
    def wider(inner: Any) -> Any:
        keys = KEYS | st.tuples(KEYS, KEYS)
        mappings = st.dictionaries(keys, inner, max_size=4)
        lists = st.lists(inner, max_size=4)
        counters = st.dictionaries(TEXTS, st.integers(), max_size=3).map(Counter)
        return lists | lists.map(tuple) | mappings | mappings.map(OrderedDict) | counters

    return st.recursive(leaves, wider, max_leaves=12)


@given(value=nested(PLAIN | tensors()))
def test_taken_apart_and_put_together_is_what_it_was(value: Any) -> None:
    tree, named = taken_apart(value, "__metadata__")
    assert "__metadata__" not in named
    assert_same(value, put_together(json.loads(json.dumps(tree)), named.__getitem__))


@given(state=st.dictionaries(TEXTS | WORDS, nested(PLAIN | tensors()), max_size=4))
def test_any_state_comes_back_from_its_file(state: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "x.ckpt", state)
    assert_same(state, read(tmp_path / "x.ckpt"))


@given(state=st.dictionaries(TEXTS, nested(PLAIN | tensors()), max_size=3), data=st.data())
def test_any_damage_is_noticed(state: dict[str, Any], data: Any, tmp_path: Path) -> None:
    """Bytes changed, cut off, put in, or exchanged with another place's."""
    path = tmp_path / "x.ckpt"
    write(path, state)
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(start + 16, len(content))))
    damaged = content[:start] + data.draw(st.binary(max_size=16)) + content[end:]
    path.write_bytes(damaged)
    if damaged == content:
        assert_same(state, read(path))
        return
    with pytest.raises(
        ValueError, match=r"x\.ckpt is (no checkpoint of alignkit|damaged or cut off|a pickle)"
    ):
        read(path)
