"""The parser is held to what is trusted within a block, and left as it was after it."""

import os
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from alignkit.imports import only_trusted


def parser() -> ArgumentParser:
    found = ArgumentParser(exit_on_error=False)
    found.add_argument("--any", type=Any)
    found.add_argument("--kind", type=type)
    return found


def test_imports_are_held_back_within_the_block_only() -> None:
    arguments = ["--kind", "decimal.Decimal"]
    with only_trusted(), pytest.raises(ArgumentError, match=r"Importing 'decimal.Decimal' is not allowed"):
        parser().parse_args(arguments)
    assert parser().parse_args(arguments).kind.__name__ == "Decimal"


def test_the_block_is_left_by_an_error_as_well() -> None:
    with pytest.raises(KeyError), only_trusted():
        raise KeyError
    assert parser().parse_args(["--kind", "decimal.Decimal"]).kind.__name__ == "Decimal"


def test_a_class_where_any_value_may_stand_is_not_made() -> None:
    said = {"class_path": "alignkit.policy.LoRA", "init_args": {"rank": 2}}
    with only_trusted():
        found = parser().instantiate_classes(parser().parse_object({"any": said})).any
    assert (type(found), found.class_path, found.init_args.rank) == (Namespace, said["class_path"], 2)


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.${name}:HOME}", "${oc.coerce:decimal.Decimal,1}"])
def test_resolvers_that_read_or_import_are_refused(text: str) -> None:
    config = OmegaConf.create({"name": "env", "x": text})
    with only_trusted(), pytest.raises(InterpolationResolutionError, match="is not for configs"):
        _ = config.x
    with only_trusted():
        with only_trusted():
            pass
        with pytest.raises(InterpolationResolutionError, match="is not for configs"):  # not yet left
            _ = config.x
    config.x = "${oc.env:HOME}"
    assert config.x == os.environ["HOME"]


def test_resolvers_that_only_reckon_stay() -> None:
    with only_trusted():
        assert OmegaConf.create({"a": "3", "b": "${oc.decode:${a}}"}).b == 3
