"""Jobs that a SLURM cluster requeues: a run goes on in its folder by itself."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.plugins.environments import SLURMEnvironment

# in a run's folder as long as it is under way: the job that works on it
JOB = "slurm_job"


def job() -> str:
    """This job's id, with its number in an array of jobs; empty outside of SLURM."""
    if not SLURMEnvironment.detect():
        return ""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def begin(run: Path) -> None:
    """Notes that this job works on a run."""
    if name := job():
        (run / JOB).write_text(f"{name}\n")


def end(run: Path) -> None:
    """Notes that the run is done."""
    (run / JOB).unlink(missing_ok=True)


def interrupted(folders: Iterable[Path]) -> Path | None:
    """The run that this job was at work on when it was requeued; None if it was not."""
    name = job() if int(os.environ.get("SLURM_RESTART_COUNT") or 0) else ""
    for folder in folders:
        if name and (folder / JOB).is_file() and (folder / JOB).read_text().strip() == name:
            return folder
    return None


def requeue() -> str:
    """Has this job begin anew when it ends; says what came of it."""
    command = ["scontrol", "requeue", job()]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        return f"{' '.join(command)} failed: {reason}; submit the job again, or go on with the command above"
    return f"job {job()} is requeued and goes on by itself"
