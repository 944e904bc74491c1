"""What is trusted, by name and by what a name leads to."""

import logging
import os
from collections.abc import Callable

import pytest

from alignkit import catalog
from alignkit.trust import ALLOWED, TrustError, allowed, check, imported, options, plugin_modules, trusting
from alignkit_dmpo.objective import DMPO


def test_plugins_that_were_found_are_trusted_and_others_are_not() -> None:
    whole, without = catalog.discover(), catalog.discover(blocked=["dmpo"])
    assert plugin_modules(whole) - plugin_modules(without) == {"alignkit_dmpo", "alignkit_dmpo.objective"}
    with (
        trusting([], without),
        pytest.raises(TrustError, match=r"^'alignkit_dmpo.objective.DMPO' is refused"),
    ):
        imported("alignkit_dmpo.objective.DMPO")
    with trusting([], whole):
        assert imported("alignkit_dmpo.objective.DMPO") is DMPO


def test_outside_of_a_command_installed_plugins_are_trusted() -> None:
    assert allowed() == {*ALLOWED, *plugin_modules(catalog.discover()), "tests"}


def test_trust_ends_with_its_block_and_adds_up() -> None:
    before = allowed()
    with trusting(["one"]), trusting(["two.inner"]):
        assert allowed() == before | {"one", "two.inner"}
        assert options() == ["--trust", "one", "--trust", "tests", "--trust", "two.inner"]
    assert allowed() == before


@pytest.mark.parametrize(
    ("path", "leads"),
    [
        ("tests.unit.test_trust.os", "'os'"),
        ("tests.unit.test_trust.logger", "'logging.Logger'"),
        ("tests.unit.test_trust.Handler", "'logging.FileHandler'"),
        ("tests.unit.test_trust.system", "'posix.system'"),
    ],
)
def test_what_a_path_leads_to_is_looked_at(path: str, leads: str) -> None:
    with pytest.raises(TrustError, match=rf"^'{path}' leads to {leads}, which is refused(?s:.*)--trust"):
        imported(path)


# reached through this module, which is trusted
logger = logging.getLogger("x")
Handler = logging.FileHandler
system: Callable[[str], int] = os.system


def test_class_paths_are_found_at_any_depth() -> None:
    inner = {"a": [1, ({"b": {"class_path": "mine.Thing"}},)]}
    with pytest.raises(TrustError, match=r"^x.yaml: a\[1\]\[0\]\.b\.class_path: 'mine.Thing' is refused"):
        check(inner, "x.yaml")
    with trusting(["mine"]):
        check(inner, "x.yaml")
    check({"class_path": "DMPO", "b": [{"class_path": "${vars.x}"}, {"class_path": 3}]}, "x.yaml")
