"""`alignkit plan`: what a run will need, before anything of it is loaded or written."""

import argparse
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from alignkit.averages import Snapshots
from alignkit.building import build
from alignkit.callbacks import EMA
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.components import Objective, PairSource, Sampler
from alignkit.declared import named_class
from alignkit.evaluation.compare import DRAWN
from alignkit.mistakes import UsageError, cause
from alignkit.module import AlignModule
from alignkit.planning.disk import Disk, disk
from alignkit.planning.fitting import fitted
from alignkit.planning.measuring import Measured, measured
from alignkit.planning.memory import MakeOptimizer, Memory, Step, memory
from alignkit.planning.report import as_json, show
from alignkit.planning.run import Run, counted, on_gpu, run_of
from alignkit.training import read_config


class Plan(NamedTuple):
    """What a run will need.

    Args:
        run: its size.
        memory: bytes on one device.
        disk: bytes on disk.
        on_gpu: whether the memory is that of a GPU.
        pairs_per_second: over all devices; None if neither given nor measured.
        measured: what steps that were run took; None without them.
        notes: what could not be known, and why.
        batch: options of ``alignkit fit`` that set the largest batch that fits; empty where none was sought.
    """

    run: Run
    memory: Memory
    disk: Disk
    on_gpu: bool
    pairs_per_second: float | None
    measured: Measured | None
    notes: tuple[str, ...]
    batch: tuple[str, ...] = ()


def main(catalog: Catalog, arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake, such as parts that do not go together.
    """
    options, of_fit = _parser().parse_known_args(arguments)
    for name, least in (("pairs_per_second", 0), ("pairs", 1), ("measure", 1), ("fit_memory", 0)):
        value = getattr(options, name)
        if value is not None and (value < least or value == 0):
            raise UsageError(f"--{name.replace('_', '-')} must be positive, got {value:g}")
    config = read_config(catalog, of_fit)
    batch: list[str] = []
    with refusals():
        if options.fit_memory is not None:
            config = fitted(config, options.fit_memory, lambda one: plan(one, options).memory.peak)
            batch = [
                f"--data.batch_size={config['data']['batch_size']}",
                f"--trainer.accumulate_grad_batches={config['trainer']['accumulate_grad_batches']}",
            ]
        planned = plan(config, options)._replace(batch=tuple(batch))
    if options.measure:
        ran = measured(catalog, [*of_fit, *batch], options.measure)
        planned = planned._replace(measured=ran, pairs_per_second=ran.pairs_per_second * planned.run.devices)
    if options.json:
        print(json.dumps(as_json(planned), indent=2))
    else:
        show(planned)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="alignkit plan",
        description="Says what a run will need, before it runs: memory by part, disk, steps, learning rate, "
        "time. Loads no weights; refuses what does not go together.",
        epilog="Everything else is what alignkit fit takes: --config FILE, and overrides such as "
        "--data.batch_size 4.",
        usage="alignkit plan --config CONFIG [options] [options of alignkit fit]",
        allow_abbrev=False,
    )
    parser.add_argument("--pairs", type=int, help="training pairs, where they are not at hand to be counted")
    parser.add_argument(
        "--pairs-per-second", type=float, metavar="X", help="speed over all devices, for the time"
    )
    parser.add_argument(
        "--measure", type=int, metavar="N", help="run N steps of it to know speed and memory; needs the model"
    )
    parser.add_argument(
        "--fit-memory",
        type=float,
        metavar="GIB",
        help="plan for the largest batch that a device of so much memory has room for, and for as many of "
        "them in an optimizer step as keep its pairs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def plan(config: dict[str, Any], options: argparse.Namespace) -> Plan:
    """Plans a run.

    Args:
        config: as ``alignkit.training.read_config`` gives it.
        options: of the command.

    Raises:
        ValueError: a part refuses its settings, or cannot be read.
    """
    notes: list[str] = []
    pairs, prompts = counts(config, options.pairs, notes)
    run = run_of(config, pairs)
    gpu = on_gpu(config)
    parts = build(config, ("objective", "sampler", "weighting", "backbone"))
    if config.get("conditioner"):
        notes.append("the conditioner, and what it adds to the network, is not counted")
    if str(config["trainer"]["strategy"]) not in ("auto", "ddp"):
        notes.append(f"strategy {config['trainer']['strategy']}: counted as if every device held everything")
    module = AlignModule(
        parts["objective"],
        parts["sampler"],
        parts["backbone"],
        optimizer(config),
        weighting=parts.get("weighting"),
        reference=named_class(config["reference"])() if config.get("reference") else None,
    )
    decays = module.weighting.snapshots if module.weighting else ()
    step = step_of(config, run, parts["objective"], parts["sampler"], gpu)
    found = memory(module, Snapshots(decays) if decays else None, optimizer(config), step)
    written = found.parts["gradients"] + found.parts["optimizer states"]
    written_to = disk(found.shapes, checkpoint=written, pairs=pairs, prompts=prompts)
    return Plan(run, found, written_to, gpu, options.pairs_per_second, None, tuple(notes))


def step_of(config: dict[str, Any], run: Run, objective: Objective, sampler: Sampler, gpu: bool) -> Step:
    """What of a whole config decides how much memory a step takes."""
    trainer, data = config["trainer"], config["data"]
    read = 2 if (sampler.reads or objective.reads) == "pair" else 1
    evaluation, samples = config["evaluation"], config["samples"]
    drawn = [evaluation["max_prompts"] * evaluation["images_per_prompt"], samples["num_prompts"]]
    callbacks = [named_class(callback) for callback in trainer.get("callbacks") or ()]
    return Step(
        resolution=data["resolution"],
        batch_size=run.batch_size,
        read=read,
        candidates=2 if objective.reads == "pair" else 1,
        precision=str(trainer["precision"] or "32-true"),
        accumulated=run.accumulated,
        clip=trainer["gradient_clip_val"],
        devices=run.devices,
        averages=sum(issubclass(callback, EMA) for callback in callbacks),
        drawn=min(DRAWN, max(drawn)) if data.get("validation") else 0,
        cached=bool(data.get("cache")),
        banked=bool(data.get("bank")),
        on_gpu=gpu,
    )


def optimizer(config: dict[str, Any]) -> MakeOptimizer:
    """What builds the optimizer that a whole config names."""
    said = config["optimizer"]
    return lambda weights: named_class(said)(weights, **said.get("init_args") or {})


def counts(config: dict[str, Any], given: int | None, notes: list[str]) -> tuple[int | None, int | None]:
    """Training pairs and different prompts, as far as they are known."""
    if given is not None:
        return given, None
    try:
        source = build({"source": config["data"]["train"]}, ("source",))["source"]
    except (ValueError, OSError, UsageError) as error:
        reason = str(cause(error)).splitlines()[0]
        notes.append(f"the number of pairs is not known, give --pairs: {reason}")
        return None, None
    assert isinstance(source, PairSource)
    return counted(source.labels(), config["data"]["ties"]), len(set(source.prompts()))
