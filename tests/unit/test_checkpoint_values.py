"""What a checkpoint's values are taken apart into, and that they come back as they were."""

import enum
import json
import math
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from alignkit.checkpoints import read, write
from alignkit.checkpoints.values import DTYPES, put_together, taken_apart


def assert_same(given: Any, found: Any) -> None:
    """Equal in value, kind, order, shape and dtype, at every depth."""
    assert type(given) is type(found)
    if isinstance(given, torch.Tensor):
        assert (given.dtype, given.shape) == (found.dtype, found.shape)
        # bytes, so that nan is nan and -0.0 is not 0.0
        ours, theirs = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (given, found))
        assert torch.equal(ours, theirs)
    elif isinstance(given, dict):
        for (key, value), (found_key, found_value) in zip(given.items(), found.items(), strict=True):
            assert_same(key, found_key)
            assert_same(value, found_value)
    elif isinstance(given, list | tuple):
        for value, found_value in zip(given, found, strict=True):
            assert_same(value, found_value)
    elif isinstance(given, float):
        if math.isnan(given):
            assert math.isnan(found)
        else:
            assert (given, math.copysign(1, given)) == (found, math.copysign(1, found))
    else:
        assert given == found


def through_json(value: Any) -> Any:
    tree, tensors = taken_apart(value, "reserved")
    return put_together(json.loads(json.dumps(tree)), tensors.__getitem__)


@pytest.mark.parametrize(
    "value",
    [
        {"none": None, "yes": True, "one": 1, "text": "é\ud800\n", "empty": ""},
        {"inf": math.inf, "minus": -math.inf, "nan": math.nan, "zero": -0.0, "tiny": 5e-324, "third": 1 / 3},
        {"large": 10**30, "negative": -(2**63)},
        {1: "int", "1": "text", (1, ("a", None)): "tuple", 0.5: "float", None: "none", False: "bool"},
        {"z": 1, "a": 2, "m": 3},
        OrderedDict(b=1, a=Counter({5: 2, 7: 0})),
        {"dict": [["tuple", {"tensor": "x"}]], "float": {"float": "nan"}},
        {"list": [[], (), {}, [(1, [2])]], "tuple": (0.9, 0.999)},
    ],
)
def test_comes_back_as_it_was(value: Any) -> None:
    assert_same(value, through_json(value))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_kind_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.arange(6).view(2, 3)
    state = {
        "matrix": numbers.to(dtype),
        "columns first": numbers.to(dtype).T,
        "part": numbers.to(dtype)[:, 1],
        "one": numbers[1, 0].to(dtype),
        "none": numbers[:0].to(dtype),
        "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),  # what follows would not be aligned
    }
    write(tmp_path / "x.ckpt", state)
    assert_same(state, read(tmp_path / "x.ckpt"))


def test_numbers_that_are_none_come_back_bit_for_bit(tmp_path: Path) -> None:
    odd = torch.tensor([math.nan, -0.0, math.inf, 1e-45])
    write(tmp_path / "x.ckpt", {"odd": odd})
    assert_same({"odd": odd}, read(tmp_path / "x.ckpt"))


def test_tensors_whose_paths_read_alike_stay_apart(tmp_path: Path) -> None:
    state = {
        "a/b": torch.tensor(1),
        "a": {"b": torch.tensor(2), "c": {1: torch.tensor(3), "1": torch.tensor(4)}},
        "__metadata__": torch.tensor(5),
        "\ud800": torch.tensor(6),  # half a character
        "\\ud800": torch.tensor(7),
    }
    write(tmp_path / "x.ckpt", state)
    assert_same(state, read(tmp_path / "x.ckpt"))


class Level(enum.IntEnum):
    """A number that is more than a number."""

    LOW = 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({1, 2}, "state/inner/0 is a builtins.set"),
        (np.float64(1.5), "state/inner/0 is a numpy.float64"),
        (Level.LOW, r"state/inner/0 is a .*Level"),
        (Path("x"), r"state/inner/0 is a pathlib\.\w*PosixPath"),
        (b"x", "state/inner/0 is a builtins.bytes"),
        (nn.Parameter(torch.ones(1)), r"state/inner/0 is a torch\.nn\.parameter\.Parameter"),
        (torch.ones(2).to_sparse(), r"state/inner/0 is a torch\.sparse_coo torch\.float32 tensor"),
        (torch.ones(2, dtype=torch.complex64), r"state/inner/0 is a torch\.strided torch\.complex64 tensor"),
        ({"x": [print]}, "state/inner/0/x/0 is a builtins.builtin_function_or_method"),
    ],
)
def test_what_it_cannot_hold_is_refused_by_name_and_place(value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}; a checkpoint holds tensors, numbers"):
        taken_apart({"state": {"inner": [value]}}, "reserved")


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights: torch.optim.AdamW(weights, lr=0.1, amsgrad=True),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        lambda weights: torch.optim.Adafactor(weights, lr=0.1),
        lambda weights: torch.optim.LBFGS(weights, lr=0.1),
    ],
)
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 3]),
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, 10, cycle_momentum=False),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 5)],
            [2],
        ),
    ],
)
def test_optimizers_and_schedules_go_on_as_if_nothing_happened(
    optimizer: Any, scheduler: Any, tmp_path: Path
) -> None:
    """Six steps straight against three, saved and loaded, and three more."""

    def steps(count: int, state: dict[str, Any] | None) -> dict[str, Any]:
        network = nn.Linear(4, 3)
        nn.init.constant_(network.weight, 0.5)
        nn.init.zeros_(network.bias)
        updates = optimizer(list(network.parameters()))
        schedule = scheduler(updates)
        if state is not None:
            network.load_state_dict(state["network"])
            updates.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])

        def loss() -> torch.Tensor:
            updates.zero_grad()
            found: torch.Tensor = (network(torch.eye(4)) - torch.arange(12.0).view(4, 3)).square().mean()
            found.backward()
            return found

        for _ in range(count):
            updates.step(loss)
            schedule.step()
        return {
            "network": network.state_dict(),
            "optimizer": updates.state_dict(),
            "schedule": schedule.state_dict(),
        }

    write(tmp_path / "x.ckpt", steps(3, None))
    assert_same(steps(6, None), steps(3, read(tmp_path / "x.ckpt")))
