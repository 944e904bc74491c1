"""Runs the claims bench: every paper's claim, in miniature, where the true utility is known.

    python benchmarks/claims/run.py --runs runs/claims                # what is missing, then README.md
    python benchmarks/claims/run.py --runs runs/claims --only a d     # two claims
    python benchmarks/claims/run.py --runs runs/claims --only f --probes   # what looks for a cause
    python benchmarks/claims/run.py --list                            # what is done and what is missing

Each run has one core and one thread, as many at a time as there are cores. Its figures go to results/, and
what is there is not run again: what was stopped goes on. README.md and its plots are written by `page.py`,
from results alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import Queue

from arms import BASE_ARM, SEEDS, TUNING_SEED, Arm, path_of
from probes import probes
from registry import CLAIMS, Claim
from sharing import Shared

HERE = Path(__file__).parent


def wanted(claims: Sequence[Claim]) -> Iterator[tuple[Arm, int]]:
    """What claims need, in the order in which it is run; what waits for a choice is not among it."""
    for claim in claims:
        yield BASE_ARM, TUNING_SEED
        for choice in claim.choices():
            for arm in choice.options.values():
                yield arm, TUNING_SEED
    for claim in claims:
        for seed in SEEDS:
            yield BASE_ARM, seed
            for arm in claim.arms() or ():
                yield arm, seed


def probed(claims: Sequence[Claim]) -> Iterator[tuple[Arm, int]]:
    """What looks for causes, and decides nothing."""
    planned = probes()
    for claim in claims:
        if claim.letter in planned:
            seeds, tried = planned[claim.letter]
            yield from ((probe.arm, seed) for seed in seeds for probe in tried)


def missing(runs: Iterable[tuple[Arm, int]]) -> list[tuple[Arm, int]]:
    """What has not been run, each once."""
    todo: dict[tuple[str, int], tuple[Arm, int]] = {}
    for arm, seed in runs:
        known = todo.setdefault((arm.name, seed), (arm, seed))[0]
        if known != arm:
            raise ValueError(f"two arms are called {arm.name}: {known} and {arm}")
    return [(arm, seed) for arm, seed in todo.values() if not path_of(arm, seed).exists()]


def run(arm: Arm, seed: int, runs: Path, core: int) -> None:
    """Runs one arm with one seed on one core."""
    command = [sys.executable, str(HERE / "one.py"), json.dumps(arm._asdict())]
    command += ["--seed", str(seed), "--runs", str(runs), "--commit", commit()]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}",
    }
    environment.pop("ALIGNKIT_RUN", None)
    with open(runs / f"{arm.name}-{seed}.log", "w") as log:
        done = subprocess.run(["taskset", "-c", str(core), *command], env=environment, stdout=log, stderr=log)
    if done.returncode:
        raise RuntimeError(f"{arm.name} with seed {seed} failed: see {log.name}")


def commit() -> str:
    """The commit that is checked out, in short."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Parses the command line, runs, writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="folder for the runs; kept")
    parser.add_argument("--only", nargs="+", choices=[claim.letter for claim in CLAIMS], help="claims to run")
    parser.add_argument("--cores", nargs="+", type=int, default=sorted(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, help="begin nothing after so many minutes")
    parser.add_argument("--probes", action="store_true", help="run what looks for causes, and no claim")
    parser.add_argument("--list", action="store_true", help="say what is missing, and stop")
    options = parser.parse_args()
    claims = [claim for claim in CLAIMS if not options.only or claim.letter in options.only]

    def todo() -> list[tuple[Arm, int]]:
        return missing(probed(claims) if options.probes else wanted(claims))

    if options.list:
        for arm, seed in todo():
            print(f"{arm.name} with seed {seed} is missing")
        print(f"{len(todo())} runs are missing, besides those that wait for a choice")
        return
    if not options.runs:
        parser.error("--runs is needed")
    options.runs.mkdir(parents=True, exist_ok=True)
    work(todo, options.runs.absolute(), options.cores, options.minutes)
    subprocess.run([sys.executable, str(HERE / "page.py")], check=True)


def work(
    needed: Callable[[], list[tuple[Arm, int]]], runs: Path, numbers: Sequence[int], minutes: float | None
) -> None:
    """Runs what is missing until nothing is, or the time is over.

    Args:
        needed: says what is missing; what was chosen makes more of it.
        runs: folder for the runs.
        numbers: of the cores.
        minutes: after which nothing more is begun.
    """
    cores: Queue[int] = Queue()
    for number in numbers:
        cores.put(number)
    started, failed, shared = time.monotonic(), set[tuple[str, int]](), Shared(runs)
    running: dict[Future[None], tuple[str, int, int]] = {}
    with ThreadPoolExecutor(len(numbers)) as pool:
        while True:
            in_time = minutes is None or time.monotonic() - started < 60 * minutes
            busy = {(name, seed) for name, seed, _ in running.values()} | failed
            todo = [(arm, seed) for arm, seed in needed() if (arm.name, seed) not in busy] if in_time else []
            while todo and not cores.empty():
                (arm, seed), core = todo.pop(0), cores.get()
                shared.prepare(arm, seed)
                running[pool.submit(run, arm, seed, runs, core)] = (arm.name, seed, core)
                print(
                    f"{time.strftime('%H:%M:%S')} {arm.name} with seed {seed}; {len(todo)} wait", flush=True
                )
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                name, seed, core = running.pop(future)
                cores.put(core)
                if future.exception():
                    failed.add((name, seed))
                    print(future.exception(), flush=True)
    if failed:
        sys.exit(f"{len(failed)} runs failed")


if __name__ == "__main__":
    main()
