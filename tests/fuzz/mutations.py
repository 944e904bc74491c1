"""Changes that a format survives, so that readers get to see what is wrong inside it."""

import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Mutate = Callable[[bytes, Random], bytes]

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "\0",
    "\ud800",
    "a/../../b",
    "/etc/passwd",
    "${a.b}",
    "x" * 3000,
    [],
    {},
    [[]],
    [1, 2, 3],
    ["a", "b"],
    {"": None},
    {"name": "x"},
    {"bytes": None, "path": "x"},
    {"float": "x"},
    {"tensor": "a"},
    {"dict": [[[], 1]]},
)
DEEP = 100_000  # brackets, more than any parser's stack


def json_value(data: bytes, draw: Random) -> bytes:
    """Another value, one fewer or one more at some place of the tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        tree = draw.choice(ODD)
    if not draw.randrange(200):
        return b"[" * DEEP
    return json.dumps(_changed(tree, draw), ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _changed(tree: Any, draw: Random) -> Any:
    if not isinstance(tree, dict | list) or not tree or draw.random() < 0.2:
        return draw.choice(ODD)
    if isinstance(tree, list):
        place = draw.randrange(len(tree))
        return _kept(
            [*tree[:place], _changed(tree[place], draw), *tree[place + 1 :]],
            [*tree[:place], *tree[place + 1 :]],
            [*tree, tree[place]],
            draw=draw,
        )
    key = draw.choice(list(tree))
    rest = {name: value for name, value in tree.items() if name != key}
    return _kept(
        {**tree, key: _changed(tree[key], draw)},
        rest,
        {**rest, draw.choice(["", "x", "name", "path"]): tree[key]},
        draw=draw,
    )


def _kept(*choices: Any, draw: Random) -> Any:
    return draw.choices(choices, (6, 1, 1))[0]


def json_lines(data: bytes, draw: Random) -> bytes:
    """The same, in one of the lines."""
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    lines[place] = json_value(lines[place], draw)
    return b"\n".join(lines)


def behind_a_byte(mutate: Mutate) -> Mutate:
    """Of what stands behind the first byte."""
    return lambda data, draw: data[:1] + mutate(data[1:], draw)


def safetensors(data: bytes, draw: Random) -> bytes:
    """The header of a safetensors file, whose length is stated; or metadata in it, which are JSON as well."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    try:
        metadata = dict(json.loads(header)["__metadata__"])
        name = draw.choice(list(metadata))
        inner = json_value(metadata[name].encode(), draw).decode("utf-8", "surrogatepass")
        told = {**json.loads(header), "__metadata__": {**metadata, name: inner}}
    except (ValueError, LookupError, TypeError, AttributeError):
        told = None
    plain = told is None or draw.random() < 0.6
    header = json_value(header, draw) if plain else json.dumps(told).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def tar(data: bytes, draw: Random) -> bytes:
    """Bytes of a header, whose checksum becomes right again."""
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    headers = [place for place, block in enumerate(blocks) if block[257:262] == b"ustar"]
    if not headers:
        return data
    place = draw.choice(headers)
    block = bytearray(blocks[place].ljust(512, b"\0"))
    # name, size, type, name of a link, prefix
    start, end = draw.choice([(0, 100), (124, 136), (156, 157), (157, 257), (345, 500)])
    for _ in range(draw.randint(1, 4)):
        block[draw.randrange(start, end)] = draw.choice(
            [0, 0x80, 0xFF, *b"0123457/.gxLKSV", draw.randrange(256)]
        )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    blocks[place] = bytes(block)
    if not draw.randrange(8):
        blocks[place:place] = [blocks[draw.choice(headers)]]
    return b"".join(blocks)


COLUMNS = ["caption", "jpg_0", "jpg_1", "label_0", "user_id", "has_label", "are_different"]
COLUMNS += ["prompt", "chosen", "rejected", "user", "text", "image"]
CELLS: tuple[Any, ...] = (
    pa.array([None, None]),
    pa.array([1, 2**40]),
    pa.array([1.5, float("nan")]),
    pa.array([-1.0, 0.5]),
    pa.array([True, None]),
    pa.array(["a", None]),
    pa.array([b"a", b""]),
    pa.array([[1], None], pa.list_(pa.int64())),
    pa.array([{"bytes": b"a", "path": None}, {"bytes": None, "path": "../x"}]),
    pa.array([{"path": 5}, {"path": None}]),
    pa.array([0, 1], pa.timestamp("us")),
    pa.array(["a", "b"]).dictionary_encode(),
)


def parquet(data: bytes, draw: Random) -> bytes:
    """A table with the columns of some source, each of any type; or without one of them, or without rows."""
    names = draw.choice([COLUMNS, COLUMNS[:5], draw.sample(COLUMNS, 6)])
    right = {"caption": pa.array(["a", "b"]), "prompt": pa.array(["a", "b"]), "label_0": pa.array([1.0, 0.5])}
    table = pa.table(
        {name: right[name] if name in right and draw.random() < 0.6 else draw.choice(CELLS) for name in names}
    )
    table = table.slice(0, draw.choice([2, 2, 2, 0]))
    told = json_value(b'{"provenance": {"rewards": {"X": 1}}}', draw)
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"alignkit": told}), file)
    return bytes([draw.randrange(3)]) + file.getvalue()
