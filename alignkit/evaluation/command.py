"""`alignkit evaluate`: the same prompts and noise for several models, scores, and a report."""

import argparse
import difflib
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

from alignkit.catalog import Catalog
from alignkit.commandline import refusals
from alignkit.components import Reward
from alignkit.evaluation.contents import Comparison, Report
from alignkit.evaluation.identity import identified, key_of
from alignkit.evaluation.manifest import device_name, drawing_environment, now, versions
from alignkit.evaluation.models import Finder, Model
from alignkit.evaluation.options import check_size, default_folder, defaults_of, parsed, scorers_of, suite_of
from alignkit.evaluation.plan import cut_off, paths_of, pictures_of, results_of
from alignkit.evaluation.predicting import Predicting, Sampling, jobs_of, predict
from alignkit.evaluation.record import Record
from alignkit.evaluation.report import write
from alignkit.evaluation.scorers import Scorer
from alignkit.evaluation.statistics.comparisons import comparisons
from alignkit.evaluation.store import Store
from alignkit.evaluation.suites import Suite
from alignkit.evaluation.verdicts.sentences import verdicts
from alignkit.evaluation.wording import bounds, lined_up, number, percent, signed
from alignkit.signals import resumable
from alignkit.training import quiet_libraries


def main(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    quiet_libraries()
    with refusals(), resumable():
        _evaluate(catalog, arguments)
    return 0


def _evaluate(catalog: Catalog, arguments: list[str]) -> None:
    started = now()
    options = parsed(arguments)
    own = defaults_of(catalog, options)
    suite = suite_of(catalog, options, own)
    check_size(options, suite)
    scorers = scorers_of(catalog, options, own)
    first = own.evaluation["seed"] if options.seed is None else options.seed
    numbers = range(first, first + (options.seeds or own.evaluation["images_per_prompt"]))
    sampling = Sampling(
        options.num_steps or own.evaluation["num_steps"],
        float(own.evaluation["guidance"] if options.guidance is None else options.guidance),
        options.precision,
    )
    out = options.out or default_folder(options, suite)
    record = Record(out, {"suite": suite.name, "prompts": suite.fingerprint(), **sampling._asdict()})
    record.check()
    models = Finder(catalog, own.config, checkpoints=options.checkpoints).find(options.model)
    judges = [scorer.name for scorer in scorers if isinstance(scorer.judge, Reward)]
    models = _with_training(models, options.trained_on, {*catalog.names("reward"), *judges})
    if len(models) < 2:
        raise ValueError(f"--model: there is only {models[0].about.name!r}; give another one to compare with")
    console = Console(stderr=True)
    quiet = not (console.is_terminal and _is_first())
    listed = track(models, "loading models", console=console, transient=True, disable=quiet)
    identities = {model.about.name: identified(model) for model in listed}
    suite = suite._replace(remarks=(*suite.remarks, *cut_off(models, suite.prompts)))
    wanted = {
        model.about.name: pictures_of(model, identities[model.about.name], suite.prompts, numbers, sampling)
        for model in models
    }
    with record.held() if _is_first() else nullcontext():
        store = Store(out)
        store.read()
        jobs = jobs_of(store, list(wanted.values()), [scorer.key for scorer in scorers], options.batch_size)
        keys = {name: key_of(identity) for name, identity in identities.items()}
        if _is_first():
            same = [pair for pair in combinations(keys, 2) if keys[pair[0]] == keys[pair[1]]]
            changed = sum(store.is_changed(one) for pictures in wanted.values() for one in pictures)
            if changed:
                print(f"{changed} pictures are not as they were drawn and judged; they are drawn again")
            _say_what_comes(suite, models, numbers, jobs, record.changed(keys), same)
            draws = any(not job.is_drawn for job in jobs)
            environment = drawing_environment(options.device, options.batch_size)
            if draws and (moved := record.moved(environment)):
                print(f"earlier pictures were drawn with another {', '.join(moved)}; they are kept")
            record.write(keys, environment if draws else None)
        if jobs:
            module = Predicting(jobs, models, sampling, {scorer.key: scorer for scorer in scorers}, store)
            predict(module, device=options.device, devices=options.devices, num_nodes=options.num_nodes)
        if not _is_first():
            return
        store.read()
        results = results_of(store, wanted, suite.prompts, numbers, scorers)
        evaluated = tuple(model.about for model in models)
        compared = comparisons(results, evaluated)
        told = {
            model.about.name: {**identities[model.about.name], **model.backbone.origins()} for model in models
        }
        report = Report(
            title=f"{', '.join(model.name for model in evaluated)}: {suite.name}",
            verdicts=verdicts(evaluated, compared),
            models=evaluated,
            comparisons=compared,
            results=results,
            pictures=paths_of(wanted, len(numbers)),
            manifest=_manifest(options, arguments, suite, scorers, sampling, numbers, told)
            | {"drawn_with": record.environments, "times": {"started": started, "finished": now()}},
        )
        paths = write(report, out)
        print(_summary(report))
        print("\n".join(f"  {path}" for path in paths))


def _is_first() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _with_training(models: Sequence[Model], said: Sequence[str], rewards: Collection[str]) -> list[Model]:
    """Models, with the rewards that their training has seen: without a name, those of all but the base.

    Raises:
        ValueError: there is no such model or reward.
    """
    names = [model.about.name for model in models]
    seen = {model.about.name: dict.fromkeys(model.about.trained_on) for model in models}
    for one in said:
        name, _, reward = one.rpartition("=")
        if name and name not in seen:
            raise ValueError(f"--trained-on {one}: no model is named {name!r}; there are {', '.join(names)}")
        if reward not in rewards:
            near = difflib.get_close_matches(reward, rewards, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(sorted(rewards))
            raise ValueError(f"--trained-on {one}: no reward is named {reward!r}{hint}\nKnown: {known}")
        for model in models if not name else (models[names.index(name)],):
            if name or model.about.source != "base":
                seen[model.about.name][reward] = None
    return [
        model._replace(about=model.about._replace(trained_on=tuple(seen[model.about.name])))
        for model in models
    ]


def _say_what_comes(
    suite: Suite,
    models: Sequence[Model],
    numbers: Sequence[int],
    jobs: Sequence[Any],
    changed: Sequence[str],
    same: Sequence[tuple[str, str]],
) -> None:
    for remark in suite.remarks:
        print(f"{suite.name}: {remark}")
    for name, other in same:
        print(f"{name} and {other} are the same model")
    for name in changed:
        print(f"{name}: has other weights than before under this name; drawn anew, earlier pictures are left")
    total = len(models) * len(suite.prompts) * len(numbers)
    missing = sum(len(job.pictures) for job in jobs if not job.is_drawn)
    unjudged = sum(len(job.pictures) for job in jobs if job.is_drawn)
    print(
        f"{len(models)} models x {len(suite.prompts)} prompts x {len(numbers)} seeds: {missing} of {total} "
        f"pictures to draw, {unjudged} that are there to judge",
        flush=True,
    )


def _manifest(
    options: argparse.Namespace,
    arguments: Sequence[str],
    suite: Suite,
    scorers: Sequence[Scorer],
    sampling: Sampling,
    numbers: Sequence[int],
    models: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "sampling": {**sampling._asdict(), "batch_size": options.batch_size},
        "seeds": list(numbers),
        "noise": "of each picture by blake2b of its prompt and seed, the same for all models",
        "device": device_name(options.device),
        "models": dict(models),
        "suite": {
            "name": suite.name,
            "prompts": len(suite.prompts),
            "of": suite.known,
            "prompts_sha256": suite.fingerprint(),
            "files_sha256": dict(suite.files),
            "remarks": list(suite.remarks),
        },
        "scorers": {
            scorer.name: {**scorer.settings, "provenance": dict(scorer.provenance)} for scorer in scorers
        },
        "versions": versions(),
        "command": shlex.join(["alignkit", "evaluate", *arguments]),
    }


def _summary(report: Report) -> str:
    """Verdicts, and every model against the first, over all prompts."""
    first = report.models[0].name
    rows = [
        each for each in report.comparisons if each.category is None and each.against == first != each.model
    ]
    head = ["", "", "mean", f"minus {first}", "wins"]
    return "\n".join([*report.verdicts, "", lined_up([head, *map(_row, rows)], 2), ""])


def _row(each: Comparison) -> list[str]:
    found = each.difference
    difference = "" if found is None else f"{signed(found.mean)} {bounds(found)}"
    wins = "" if each.win_rate is None else percent(each.win_rate.mean)
    return [each.model, each.measure, number(each.mean.mean), difference, wins]
