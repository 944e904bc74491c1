"""`alignkit sweep`: runs a config with several values of its keys, and says which are best."""

import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import checkpoints
from alignkit.catalog import Catalog
from alignkit.commandline import refusals
from alignkit.evaluation.callback import SUMMARY
from alignkit.evaluation.wording import number
from alignkit.files import write_text, written_to
from alignkit.mistakes import UsageError
from alignkit.signals import Stopped, resumable
from alignkit.sweep import processes, report
from alignkit.sweep.metric import Metric, metric
from alignkit.sweep.options import SEED, Options, parsed
from alignkit.sweep.sharing import SHARED, Shared, flat, shared, unbanked
from alignkit.sweep.space import Values, ends, overrides, settled, told
from alignkit.sweep.study import DONE, GRID, Study, Trial, drawn
from alignkit.sweep.validations import Validations, written
from alignkit.training import read_config, run_cli

RECORD, CONFIG, TRIALS = "sweep.json", "config.yaml", "trials"


class Plan(NamedTuple):
    """A sweep, checked.

    Args:
        catalog: what is installed.
        options: the command line.
        config: whole, without what is varied.
        metric: what trials are compared by.
        trials: those that are known before any has run.
        configs: theirs, whole.
        total: how many there will be.
        shared: what is made for all of them.
        of: what another call must have in common with this one.
    """

    catalog: Catalog
    options: Options
    config: Mapping[str, Any]
    metric: Metric
    trials: list[dict[str, str]]
    configs: list[dict[str, Any]]
    total: int
    shared: Shared
    of: dict[str, str]

    @property
    def seeds(self) -> tuple[str, ...]:
        """Of the runs of each trial."""
        return self.options.seeds or (str(self.config[SEED]),)

    def folder(self, trial: int, seed: str) -> Path:
        """Of a run."""
        folder = self.options.out / TRIALS / f"{trial:03}"
        return folder / f"seed-{seed}" if len(self.seeds) > 1 else folder

    def lock(self, trial: int) -> Path:
        """A file that who is at work on a trial keeps locked; it says of whom, and with which values."""
        return self.options.out / TRIALS / f".{trial:03}.lock"

    def bank(self, seed: str) -> Path:
        """Of the runs of one seed."""
        return self.options.out / (f"bank-{seed}" if len(self.seeds) > 1 else "bank")

    def of_fit(self, values: Values) -> list[str]:
        """What ``alignkit fit`` is told of a trial."""
        return ["--config", self.options.config, *self.options.of_fit, *overrides(values)]

    def banked(self, values: Values) -> bool:
        """Whether a trial is told what the reference says."""
        if not self.shared.bank:
            return False
        if values in self.trials:
            return not unbanked(self.configs[self.trials.index(dict(values))])
        try:
            return not unbanked(read_config(self.catalog, self.of_fit(values)))
        except UsageError:  # of a combination that nobody could know of; fit says so
            return False

    def line(self, trial: int, values: Values, seed: str) -> list[str]:
        """The command of a run."""
        words = self.of_fit(values)
        if self.options.seeds:
            words.append(f"--{SEED}={seed}")
        if self.shared.cache:
            words.append(f"--data.cache={self.options.out / 'cache'}")
        if self.banked(values):
            words.append(f"--data.bank={self.bank(seed)}")
        if self.shared.pictures:
            words.append(f"--evaluation.base_pictures={self.options.out / 'base'}")
        if self.options.prune:
            spec = {
                "class_path": f"{Validations.__module__}.{Validations.__qualname__}",
                "init_args": {"measure": self.metric.name},
            }
            words.append(f"--trainer.callbacks+={json.dumps(spec)}")
        words.append(f"--run={self.folder(trial, seed)}")
        return processes.command(self.catalog, "fit", words)

    def lines(self, trial: int, values: Values) -> list[list[str]]:
        """The commands of a trial's runs."""
        return [self.line(trial, values, seed) for seed in self.seeds]


def main(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code: 1 if no trial is done.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    options = parsed(arguments)
    with refusals(), resumable(), written_to(options.out):
        plan = planned(catalog, options)
        if options.dry_run:
            show(plan)
            return 0
        return swept(plan)


def planned(catalog: Catalog, options: Options) -> Plan:
    """Checks a sweep: every trial's config is read as ``alignkit fit`` reads it, and none is begun.

    Raises:
        UsageError: what ``alignkit fit`` would refuse before it loads anything.
    """
    fixed = ["--config", options.config, *options.of_fit]
    config = read_config(catalog, fixed)
    options = options._replace(axes=settled(options.axes, flat(config)))
    trials = drawn(options.axes, options.sampler, options.trials, options.draw_seed)
    count = len(trials) if options.sampler == GRID else options.trials or 0
    for extremes in ends(options.axes) if options.sampler != GRID else ():
        read_config(catalog, [*fixed, *overrides(extremes)])
    configs = [read_config(catalog, [*fixed, *overrides(values)]) for values in trials]
    chosen = metric(options.metric, configs[0])
    of = {
        "varied": "; ".join(map(str, options.axes)),
        "sampler": f"{options.sampler}, draw seed {options.draw_seed}",
        "seeds": ",".join(options.seeds) or "the config's",
        "metric": f"{chosen}, {chosen.way}{', pruned' * options.prune}",
        "share": options.share,
        **{key: str(value) for key, value in flat(config).items()},
    }
    common = shared(config, configs, count, options.share)
    return Plan(catalog, options, config, chosen, trials, configs, count, common, of)


def show(plan: Plan) -> None:
    """Says what would be done."""
    options, runs = plan.options, plan.total * len(plan.seeds)
    print(f"{plan.total} trials of {options.config}, {runs} runs; {plan.metric}, {plan.metric.way}")
    if plan.shared.cache:
        print(f"made once: {options.out / 'cache'}, pictures and prompts as they are encoded")
    if plan.shared.bank:
        print(f"made once: {', '.join(str(plan.bank(seed)) for seed in plan.seeds)}, what the reference says")
    if plan.shared.pictures:
        print(f"made once: {options.out / 'base'}, what the base draws of held-out prompts")
    for note in plan.shared.notes:
        print(note)
    for trial, values in enumerate(plan.trials):
        print(f"trial {trial}: {told(values)}")
        for line in plan.lines(trial, values):
            print(f"  {shlex.join(line)}")
    if more := plan.total - len(plan.trials):
        print(f"and {more} more, each chosen from what came of those before")


def swept(plan: Plan) -> int:
    """Runs what has not been run, and writes what came of it; returns the exit code."""
    options = plan.options
    with processes.patient():
        with processes.alone(options.out / TRIALS / ".prepare.lock"):
            record = _record(plan)
            study = Study(
                options.storage,
                options.study,
                plan.of,
                axes=options.axes,
                sampler=options.sampler,
                seed=options.draw_seed,
                higher=plan.metric.higher,
            )
            study.plan(plan.trials, plan.total)
            if options.retry:
                study.retry()
            plan = made(plan, record)
        try:
            while (claimed := claim(plan, study)) is not None:
                work(plan, *claimed)
        finally:
            code = tell(plan, study)
    return code


def _record(plan: Plan) -> dict[str, Any]:
    """What the folder knows of this sweep.

    Raises:
        UsageError: it is another's.
    """
    path = plan.options.out / RECORD
    if not path.is_file():
        return {"study": plan.options.study, "of": plan.of, "made": {}}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in plan.of if record["of"].get(key) != plan.of[key]]
    if differing or record["study"] != plan.options.study:
        key = differing[0] if differing else "study"
        before = record["of"].get(key) if differing else record["study"]
        now = plan.of[key] if differing else plan.options.study
        raise UsageError(
            f"--out {plan.options.out}: holds another sweep; {key}: {before} -> {now}\n"
            "Call it as it was begun, or give another --out"
        )
    return record


def made(plan: Plan, record: dict[str, Any]) -> Plan:
    """Makes what all trials share and is not made yet; a plan that goes on without what cannot be made."""
    options, done = plan.options, record["made"]
    for note in plan.shared.notes:
        print(note, flush=True)
    # once decided: a run that goes on must be the one that it was, however many trials there are by now
    known = record.setdefault("shared", {name: getattr(plan.shared, name) for name in SHARED})
    plan = plan._replace(shared=plan.shared._replace(**known))
    cache, bank = plan.shared.cache, plan.shared.bank
    if cache:
        path = options.out / CONFIG
        fixed = ["--config", options.config, *options.of_fit]
        write_text(path, run_cli(plan.catalog, "fit", fixed, only_read=True).text())
        words = ["--config", str(path), "--out", str(options.out / "cache")]
        cache = _make(plan, "cache", words, done)
    if bank:
        values = next(values for values in plan.trials if plan.banked(values))
        own = [f"--data.cache={options.out / 'cache'}"] if cache else []
        for seed in plan.seeds:
            folder = plan.bank(seed)
            words = ["--reference", *plan.of_fit(values), f"--{SEED}={seed}", *own, f"--out={folder}"]
            bank = bank and _make(plan, folder.name, words, done)
    write_text(options.out / RECORD, json.dumps(record, indent=2) + "\n")
    return plan._replace(shared=plan.shared._replace(cache=cache, bank=bank))


def _make(plan: Plan, name: str, words: list[str], done: dict[str, str]) -> bool:
    """Makes one of what trials share, once; whether it is there."""
    if name not in done:
        print(f"making {plan.options.out / name}", flush=True)
        log = plan.options.out / f"{name}.log"
        code = processes.run(processes.command(plan.catalog, "cache", words), log)
        done[name] = processes.reason(log, code) if code else ""
    if done[name]:
        print(f"going on without {plan.options.out / name}: {done[name]}", flush=True)
    return not done[name]


def claim(plan: Plan, study: Study) -> tuple[Trial, int | None] | None:
    """A trial that nobody works on, interrupted ones first, and its lock; None if none is left.

    One whose sweep was killed is waited for: its run is about to end.
    """
    while True:
        with processes.alone(plan.options.out / TRIALS / ".claim.lock"):
            running = study.running()
            for begun in running:
                if (lock := processes.locked(plan.lock(begun))) is not None:
                    return study.resumed(begun), lock
            if (trial := study.begun()) is not None:
                return trial, processes.locked(plan.lock(trial.number))
        if not any(processes.is_orphan(plan.lock(begun)) for begun in running):
            return None
        processes.end_if_told()
        time.sleep(processes.LOOK)


def work(plan: Plan, trial: Trial, lock: int | None) -> None:
    """Does the runs of a trial, and notes what came of it.

    Raises:
        Stopped: this process was told to end; the trial goes on when the sweep is called again.
    """
    began = time.monotonic() - trial.seconds
    print(f"trial {trial.number}: {told(trial.values)}", flush=True)
    try:
        _forget_others(plan, trial)
        parts = [_reached(plan, trial, place, lock) for place in range(len(plan.seeds))]
        trial.done(parts, time.monotonic() - began)
        said = f"is done: {plan.metric} {number(sum(parts) / len(parts))}"
    except WorseError:
        said = trial.pruned(time.monotonic() - began)
    except ValueError as error:
        trial.failed(str(error), time.monotonic() - began)
        said = f"failed: {error}"
    except Stopped:
        trial.interrupted(time.monotonic() - began)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    print(f"trial {trial.number} {said}", flush=True)


class WorseError(Exception):
    """A trial does worse than others did."""


def _forget_others(plan: Plan, trial: Trial) -> None:
    """Removes the runs of a trial of that number and other values, as of a storage that is gone."""
    path = plan.lock(trial.number)
    if processes.owned(path).get("values", trial.values) != trial.values:
        shutil.rmtree(plan.options.out / TRIALS / f"{trial.number:03}", ignore_errors=True)
    processes.own(path, {"values": trial.values})


def _reached(plan: Plan, trial: Trial, place: int, lock: int | None) -> float:
    """Does a run of a trial, or the rest of it; returns its metric.

    Raises:
        ValueError: it failed, or does not report the metric.
        WorseError: it was ended for being worse than others.
    """
    folder = plan.folder(trial.number, plan.seeds[place])
    if not (folder / SUMMARY).is_file():
        line = plan.line(trial.number, trial.values, plan.seeds[place])
        if checkpoints.kept(folder):
            line.append("--ckpt_path=last")
        else:
            shutil.rmtree(folder, ignore_errors=True)  # fit would leave it alone, and take another
        log = plan.options.out / TRIALS / f"{trial.number:03}.log"
        watcher = Watcher(plan, trial, place)
        code = processes.run(line, log, lock=lock, is_enough=watcher)
        if watcher.is_over:
            raise WorseError
        if code:
            raise ValueError(processes.reason(log, code))
    return plan.metric.of(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))


class Watcher:
    """Reports a trial's validations, if asked to prune, and says when it is worse than others.

    Args:
        plan: of the sweep.
        trial: at work.
        place: of the seed of the run at work.
    """

    def __init__(self, plan: Plan, trial: Trial, place: int) -> None:
        self.is_over = False
        self._trial, self._prunes = trial, plan.options.prune
        folders = [plan.folder(trial.number, seed) for seed in plan.seeds[: place + 1]]
        *earlier, self._folder = folders
        self._before = sum(len(written(folder)) for folder in earlier)

    def __call__(self) -> bool:
        for count, value in enumerate(written(self._folder).values() if self._prunes else (), 1):
            if not self.is_over and self._trial.report(self._before + count, value):
                self.is_over = self._trial.is_worse()
        return self.is_over


def tell(plan: Plan, study: Study) -> int:
    """Writes and prints what came of the trials so far; returns the exit code."""
    out, rows = plan.options.out, study.rows()
    lines = {row.number: plan.lines(row.number, row.values) for row in rows if row.values}
    with processes.alone(out / TRIALS / ".tell.lock"):
        missing = report.write(out, rows, plan.metric, plan.options.axes, lines)
    print(f"\n{report.table(rows, plan.metric, plan.options.axes)}\n")
    for line in (*report.failures(rows), *filter(None, [missing])):
        print(line)
    print(report.verdict(rows, plan.metric))
    best = report.ranked(rows, plan.metric)[:1]
    is_done = bool(best) and best[0].state == DONE
    if is_done:
        again = (shlex.join(line[:-1]) for line in lines[best[0].number])  # in a folder of its own
        print("\n".join(["to do it again:", *again]))
    print(f"all of it is in {out / report.TABLE}", flush=True)
    return 0 if is_done else 1
