"""What `alignkit sweep` is told."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignkit.commandline import Parser
from alignkit.configfiles import find_config
from alignkit.mistakes import UsageError
from alignkit.sweep.sharing import BOTH, CACHE, NONE
from alignkit.sweep.space import Axis, Range, choices, interval
from alignkit.sweep.study import GRID, SAMPLERS, TPE

DESCRIPTION = """\
Runs `alignkit fit` for each trial, in a process of its own, and compares trials by a held-out measure.

  alignkit sweep CONFIG --grid objective.beta=500,2000,5000
  alignkit sweep CONFIG --grid objective.beta=500,2000 --grid optimizer.lr=1e-5,5e-5 --seeds 0,1,2
  alignkit sweep CONFIG --range objective.beta=200..8000:log --range optimizer.lr=1e-6..1e-4:log --trials 30

Pictures and prompts are encoded once, the reference is asked once, and the base draws held-out prompts once,
for all trials that can share it. What is killed goes on when it is called again, and does no finished trial
twice; a trial that fails is noted, and the others go on. OUT gets trials.md, trials.json and trials.png.

Several machines, or GPUs, work on one sweep when the same command is given to each, with the same --out on a
disk that all see, and --storage with the URL of a database (or journal:FILE on that disk).
"""
EPILOG = """\
CONFIG comes first; everything else, or what follows --, goes to every alignkit fit: --optimizer.lr 2e-5.
"""
SEED = "seed_everything"
# what a sweep gives to fit by itself
OWN = ("config", "run", "ckpt_path", "print_config", "allow-change", "allow_change")


class Options(NamedTuple):
    """The command line.

    Args:
        config: as it was given.
        axes: what is varied.
        sampler: "grid", "random" or "tpe".
        trials: how many; None for all of a grid.
        metric: as it was given.
        prune: whether trials that do worse are ended.
        seeds: of the runs of each trial; empty for the config's own.
        out: folder for everything.
        storage: URL of the study.
        study: its name there.
        draw_seed: of what is drawn at random.
        share: "both", "cache" or "none".
        retry: whether failed trials are run again.
        dry_run: whether to say only what would be done.
        of_fit: options of ``alignkit fit``.
    """

    config: str
    axes: tuple[Axis, ...]
    sampler: str
    trials: int | None
    metric: str | None
    prune: bool
    seeds: tuple[str, ...]
    out: Path
    storage: str
    study: str
    draw_seed: int
    share: str
    retry: bool
    dry_run: bool
    of_fit: tuple[str, ...]


def parsed(arguments: Sequence[str]) -> Options:
    """Reads the command line.

    Raises:
        UsageError: it cannot be read.
        ConfigNotFoundError: there is no such config.
    """
    told, rest = _parser().parse_known_args(arguments)
    if told.config.startswith("-"):
        raise UsageError("give the config first: alignkit sweep CONFIG --grid KEY=V1,V2")
    path = find_config(told.config)
    of_fit = tuple(word for word in rest if word != "--")
    for word in of_fit:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in OWN[1:]:
            raise UsageError(f"--{name}: a sweep gives it to each of its runs; leave it out")
    axes: list[Axis] = [*map(choices, told.grid), *map(interval, told.range)]
    if taken := next((axis.key for axis in axes if axis.key in OWN), None):
        raise UsageError(f"{taken} cannot be varied: a sweep gives it to each of its runs")
    sampler = _sampler(told, axes)
    name = path.parent.name if path.name == "config.yaml" else path.stem
    out = told.out or Path("sweeps", name)
    return Options(
        config=told.config,
        axes=tuple(axes),
        sampler=sampler,
        trials=told.trials,
        metric=told.metric,
        prune=told.prune,
        seeds=_seeds(told.seeds, axes),
        out=out,
        storage=told.storage or f"sqlite:///{out.absolute() / 'study.db'}",
        study=told.study or out.absolute().name,
        draw_seed=told.draw_seed,
        share=told.share,
        retry=told.retry,
        dry_run=told.dry_run,
        of_fit=of_fit,
    )


def _parser() -> Parser:
    options = Parser(
        prog="alignkit sweep",
        usage="alignkit sweep CONFIG --grid KEY=V1,V2 [options] [options of alignkit fit]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("config", metavar="CONFIG", help="a config, packaged or not")
    add(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="values of a key, such as objective.beta=500,2000 or objective=NAME,OTHER; repeat it for other "
        "keys: all combinations are tried",
    )
    add(
        "--range",
        action="append",
        default=[],
        metavar="KEY=LOW..HIGH[:log]",
        help="numbers between two, such as optimizer.lr=1e-6..1e-4:log; with :log, by order of magnitude",
    )
    add(
        "--sampler",
        choices=SAMPLERS,
        help="grid: all of --grid; random: draws; tpe: learns from the trials before. grid if there is no "
        "--range, else tpe",
    )
    add("--trials", type=int, metavar="N", help="how many; needed but for a grid")
    add(
        "--metric",
        metavar="NAME[:higher|:lower]",
        help="what is compared: a reward of the config, by its gain over the base on held-out prompts, or "
        "what validations log, such as rewards/accuracies or loss. The first reward if there is one; else "
        "rewards/accuracies, as losses of different settings cannot be compared",
    )
    add(
        "--prune",
        action="store_true",
        help="end trials that are worse than the median of the others at a validation; with a reward, one "
        "picture of each held-out prompt is drawn then",
    )
    add(
        "--seeds",
        metavar="S1,S2",
        help="run each trial with these seeds, and take the mean; the config's own",
    )
    add("--out", type=Path, help="folder for everything; sweeps/<config>")
    add("--storage", metavar="URL", help="of a database, or journal:FILE; SQLite in OUT")
    add("--study", metavar="NAME", help="of the sweep in the storage; OUT's name")
    add("--draw-seed", type=int, default=0, metavar="N", help="of what is drawn at random (0)")
    add(
        "--share",
        choices=(BOTH, CACHE, NONE),
        default=BOTH,
        help="what is made once for all trials: the cache of pictures and prompts, and the bank of what the "
        "reference says (both)",
    )
    add("--retry", action="store_true", help="run failed trials once more")
    add("--dry-run", action="store_true", help="check everything, say what would be run, and stop")
    return options


def _sampler(told: argparse.Namespace, axes: Sequence[Axis]) -> str:
    if not axes:
        raise UsageError("nothing to vary: give --grid KEY=V1,V2, or --range KEY=LOW..HIGH")
    between = next((axis.key for axis in axes if isinstance(axis, Range)), None)
    sampler: str = told.sampler or (GRID if between is None else TPE)
    if sampler == GRID and between is not None:
        raise UsageError(
            f"--range {between}: a grid needs values, --grid {between}=V1,V2; or choose --sampler"
        )
    if told.trials is None and sampler != GRID:
        raise UsageError(f"--trials N: say how many; sampler {sampler} knows no end")
    if told.trials is not None and told.trials < 1:
        raise UsageError(f"--trials must be at least 1, got {told.trials}")
    return sampler


def _seeds(text: str | None, axes: Sequence[Axis]) -> tuple[str, ...]:
    if text is None:
        return ()
    if any(axis.key == SEED for axis in axes):
        raise UsageError(f"--seeds and {SEED} cannot both be given: each run has one seed")
    seeds = tuple(part.strip() for part in text.split(","))
    if not all(re.fullmatch(r"\d+", seed) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text}: must be different whole numbers, such as 0,1,2")
    return seeds
