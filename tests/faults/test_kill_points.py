"""The benchmark that kills runs: that it sees what differs, and two of its points."""

import importlib
import subprocess
import sys

import pytest
import torch

from tests.runs import ROOT, environment


def test_it_sees_another_weight_and_another_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("kill_points")
    state = {"weights": [torch.ones(3), {"step": 4}]}
    assert bench.same(state, {"weights": [torch.ones(3), {"step": 4}]})
    assert not bench.same(state, {"weights": [torch.ones(3).nextafter(torch.zeros(3)), {"step": 4}]})
    assert not bench.same(state, {"weights": [torch.ones(3), {"step": 5}]})
    assert not bench.same(state, {"weights": [torch.ones(3)]})
    whole = [(0, [[1, 2]]), (1, [[3, 4]]), (2, [[5, 6]])]
    assert bench.same_pairs(whole, whole[:2] + whole[1:])
    assert not bench.same_pairs(whole, whole[:1] + whole[2:])
    assert not bench.same_pairs(whole, [*whole[:2], (1, [[3, 7]]), *whole[1:]])
    assert not bench.same_pairs(whole, [*whole, (3, [[7, 8]])])


@pytest.mark.slow
def test_a_run_killed_in_a_step_and_in_a_save_ends_as_the_whole_one() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kill_points.py"), "--points", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**2 of 2 identical.**" in done.stdout
