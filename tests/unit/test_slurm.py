"""Which run a requeued job goes on with; whole runs are in tests/faults/test_signals.py."""

from pathlib import Path

import pytest

from alignkit import slurm


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("NTASKS", "1"), ("JOB_ID", "7"), ("JOB_NAME", "align")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    return monkeypatch


def test_a_job_goes_on_with_its_own_run_and_only_when_it_was_requeued(
    job: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("of_another", "done", "own")]
    for folder, name in zip(folders, ("77", "", "7"), strict=True):
        folder.mkdir()
        job.setenv("SLURM_JOB_ID", name or "7")
        slurm.begin(folder)
        if not name:
            slurm.end(folder)
    job.setenv("SLURM_JOB_ID", "7")
    assert slurm.interrupted(folders) is None
    job.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.interrupted(folders) == folders[2]
    assert slurm.interrupted([]) is None
    job.delenv("SLURM_NTASKS")
    assert slurm.interrupted(folders) is None


def test_outside_of_a_cluster_nothing_is_noted(job: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job.delenv("SLURM_NTASKS")
    slurm.begin(tmp_path)
    slurm.end(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_job_of_an_array_is_named_with_its_number(job: pytest.MonkeyPatch) -> None:
    assert slurm.job() == "7"
    job.setenv("SLURM_ARRAY_JOB_ID", "40")
    job.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm.job() == "40_2"


def test_a_cluster_without_its_command_is_told_of(job: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job.setenv("PATH", str(tmp_path))
    assert slurm.requeue().startswith("scontrol requeue 7 failed: ")
