"""What benchmarks are told of processes that train: time and memory after each micro-step."""

from pathlib import Path
from typing import Any

import pytest

from tests.runs import TOY, environment, written


@pytest.fixture
def _found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def test_memory_is_that_of_the_process_itself(script: Any) -> None:
    """Python alone has more than 5 MB, and less than the machine; the rest of the file is left out."""
    held = script("clocked").held(Path("/proc/self/status").read_text())
    assert 5 < held.own <= held.peak < 1e5
    said = "VmPeak:\t  900 kB\nVmHWM:\t 2500 kB\nRssAnon:\t  1500 kB\nRssFile:\t 10 kB\n\nThreads:\t1\n"
    assert script("clocked").held(said) == (2.5, 1.5)


@pytest.mark.slow
@pytest.mark.usefixtures("_found_by_processes")
def test_every_process_tells_of_every_micro_step(script: Any, tmp_path: Path) -> None:
    written(tmp_path, TOY + "\ntrainer: {accelerator: cpu, max_steps: 3, strategy: ddp, devices: 2}\n")
    told = script("clocked").clocked(["--trust", "tests", "fit", "--config", "tiny.yaml"], tmp_path)
    assert [len(moments) for moments in told] == [3, 3]
    for moments in told:
        assert [moment.cpu for moment in moments] == sorted(moment.cpu for moment in moments)
        assert all(0 < moment.cpu < 600 and moment.own <= moment.peak for moment in moments)


@pytest.mark.slow
@pytest.mark.usefixtures("_found_by_processes")
def test_a_run_that_fails_is_told_in_its_words(script: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"alignkit fit --config none\.yaml failed: .*none\.yaml"):
        script("clocked").clocked(["fit", "--config", "none.yaml"], tmp_path)


def test_memory_is_compared_with_that_of_the_scripts_loop(script: Any) -> None:
    """300 MB beside libraries against 200 are 1.5 times as much."""
    memory, held = script("memory"), script("clocked").Held
    found = {
        memory.LIBRARIES: held(peak=400.0, own=300.0),
        memory.SCRIPTS: held(peak=900.0, own=500.0),
        "alignkit": held(peak=950.0, own=600.0),
    }
    assert memory.table(found)[-1] == "| alignkit | 600 | 300 | 1.50 | 950 |"
