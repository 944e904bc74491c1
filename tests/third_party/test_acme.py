"""A distribution that is not ours is found, named and used like our own. ``make test`` installs it."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from alignkit.catalog import Catalog, Component, discover
from alignkit.testing.contracts import objectives
from alignkit.types import Batch, Noised, Scored

FOLDER = Path(__file__).parent / "acme_align"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    try:
        version("acme-align")
    except PackageNotFoundError:
        pytest.fail(
            "acme-align is not installed: pip install --no-deps tests/third_party/acme_align", pytrace=False
        )
    return discover()


def test_catalog_names_component_plugin_and_distribution(catalog: Catalog):
    assert catalog.components["objective", "AcmeHinge"] == Component(
        "objective", "AcmeHinge", "acme_align.objective:AcmeHinge", "acme", "acme-align 1.2.3"
    )
    assert catalog.failures == ()


@pytest.mark.parametrize("blocked", ["acme", "acme-align"])
def test_can_be_blocked_by_plugin_and_by_distribution(catalog: Catalog, blocked: str):
    assert "AcmeHinge" not in discover(blocked=[blocked]).names("objective")
    assert "DMPO" in discover(blocked=[blocked]).names("objective")


def test_objective_computes(catalog: Catalog):
    """Logits are (beta/2)(1 - 0) = 1 and -1, which lack 0 and 2 to one."""
    objective = catalog.resolve("objective", "AcmeHinge")(beta=2.0)
    id_B = torch.arange(2)
    scored = Scored(
        Noised(*torch.zeros(3, 2, 2, 1, 1, 1)),
        torch.tensor([[-1.0, -2.0], [-2.0, -1.0]]),
        torch.full((2, 2), -2.0),
    )
    loss_B = objective(scored, Batch(torch.zeros(2, 2, 3, 4, 4), ("a", "b"), id_B, id_B)).loss_B
    assert_close(loss_B, torch.tensor([0.0, 2.0]))


def test_its_own_tests_hold_it_to_the_contracts(catalog: Catalog):
    """In a process of their own, with a configuration that is not ours. A kind that it lacks is skipped."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-c"]
    done = subprocess.run(
        [*command, "pyproject.toml", "tests"],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > len(objectives.__all__)
