"""What `alignkit evaluate` is told, and what it takes from a run where it is told nothing."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alignkit.building import build, read
from alignkit.catalog import Catalog
from alignkit.commandline import Parser
from alignkit.components import PairSource
from alignkit.devices import available, device
from alignkit.evaluation.callback import Evaluation
from alignkit.evaluation.drawing import PRECISIONS, file_name
from alignkit.evaluation.models import BASE, first_run, split
from alignkit.evaluation.results import Prompt
from alignkit.evaluation.scorers import Scorer, class_name, named_settings, scorer
from alignkit.evaluation.suites import Suite, drawn_of, named_suite, read_suite
from alignkit.generate import config_of
from alignkit.naming import defaults

# what is known of each is in memory
MAX_PICTURES = 10_000_000
DESCRIPTION = """
Compares models: draws the same prompts from the same noise with each, has rewards judge the pictures, and
writes a report with verdicts, intervals and the pictures side by side.

  alignkit evaluate --run runs/demo                       base against aligned, on the run's held-out prompts
  alignkit evaluate --model base --model runs/a --model runs/b --suite PartiPrompts
  alignkit evaluate --run runs/demo --checkpoints         how it went, checkpoint by checkpoint

What is killed goes on when it is called again, and comes out the same. Another reward, model or seed is
added by naming it as well: what is there is not drawn again.
"""


class Defaults(NamedTuple):
    """What is meant where the command line is silent.

    Args:
        run: the first run, if there is one.
        config: its config, or that of ``--config``.
        evaluation: how it evaluates.
    """

    run: Path | None
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]


def parser() -> Parser:
    """The options of the command."""
    options = Parser(
        prog="alignkit evaluate",
        description=DESCRIPTION.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = options.add_argument_group("models")
    models.add_argument("--run", type=Path, help="short for --model base --model aligned=RUN")
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="base (what the first run started from), a run's folder, RUN@CHECKPOINT such as runs/demo@last, "
        "a pipeline's folder, a hub id, or a backbone with settings: {name: NAME, path: ...}; repeat it. "
        "The others are compared with the first",
    )
    models.add_argument(
        "--checkpoints", action="store_true", help="all kept checkpoints of each run, as a series"
    )
    models.add_argument("--config", help="where there is no run: its base, rewards and settings")
    models.add_argument(
        "--trained-on",
        action="append",
        default=[],
        metavar="[MODEL=]REWARD",
        help="a reward that training has seen: the report sets it apart from those that it has not",
    )
    asked = options.add_argument_group("prompts and seeds")
    asked.add_argument(
        "--suite",
        metavar="NAME|FILE",
        help="what is drawn: an installed suite (alignkit list), or a .txt, .jsonl, .json, .csv, .tsv or "
        ".parquet file; {name: NAME, path: ...} or {path: FILE, prompt: COLUMN, category: COLUMN} with "
        "settings; the first run's held-out prompts if not given",
    )
    asked.add_argument("--max-prompts", type=int, metavar="N", help="only so many of them, evenly spread")
    asked.add_argument("--seeds", type=int, metavar="S", help="pictures of each prompt")
    asked.add_argument("--seed", type=int, help="number of the first of them")
    judged = options.add_argument_group("judging")
    judged.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME",
        help="who judges, instead of the run's own rewards; repeat it; {name: NAME, ...} with settings",
    )
    judged.add_argument("--features", metavar="NAME", help="by what diversity is measured; none: not at all")
    drawn = options.add_argument_group("drawing; the run's own settings if not given")
    drawn.add_argument("--num-steps", type=int, metavar="N", help="steps per picture")
    drawn.add_argument("--guidance", type=float, help="classifier-free guidance; 1 switches it off")
    drawn.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures drawn at once (32)")
    drawn.add_argument(
        "--precision", choices=list(PRECISIONS), default="32-true", help="of the networks (32-true)"
    )
    drawn.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="where"
    )
    drawn.add_argument("--devices", type=int, default=1, metavar="N", help="of each machine (1)")
    drawn.add_argument("--num-nodes", type=int, default=1, metavar="N", help="machines (1)")
    options.add_argument("--out", type=Path, help="folder of the evaluation; evaluations/NAME if not given")
    return options


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        UsageError: it cannot be read.
        ValueError: a number is out of its range, or no model is named.
    """
    options = parser().parse_args(arguments)
    for name, least in (
        ("max_prompts", 2),  # intervals are over prompts
        ("seeds", 1),
        ("seed", 0),
        ("num_steps", 1),
        ("guidance", 0),
        ("batch_size", 1),
        ("devices", 1),
        ("num_nodes", 1),
    ):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    kind, _, number = options.device.partition(":")
    if number and options.devices > 1:
        named = f"--device {options.device} names one of them"
        raise ValueError(f"{named}; leave the number out, or --devices {options.devices}")
    # processors: a process each, as many as wanted
    if kind != "cpu" and options.devices > available()[kind]:
        raise ValueError(f"--devices {options.devices}: there are {available()[kind]} of {kind} here")
    if options.run is not None:
        options.model = [BASE, f"aligned={options.run}", *options.model]
    if not options.model:
        raise ValueError("which models? Give --run RUN, or --model for each")
    if empty := [said for said in options.model if not said.strip() or said.endswith("=")]:
        raise ValueError(f"--model {empty[0]!r}: names no model; give MODEL or NAME=MODEL")
    if len(options.model) == 1 and split(options.model[0])[1] == BASE:
        raise ValueError(f"--model: there is only {BASE!r}; give another one to compare with")
    return options


def defaults_of(catalog: Catalog, options: argparse.Namespace) -> Defaults:
    """What is meant where nothing is said.

    Raises:
        UsageError: the config cannot be read.
        ValueError: there is no such run.
    """
    if options.run is not None:
        config_of(options.run)  # it is a run, or is refused before anything else
    run, config = first_run(options.model), {}
    if options.config is not None:
        config = read(catalog, options.config)
    elif run is not None:
        config = config_of(run)
    return Defaults(run, config, {**defaults(Evaluation), **(config.get("evaluation") or {})})


def default_folder(options: argparse.Namespace, suite: Suite) -> Path:
    """Where an evaluation is kept if nobody says: named by its models, and by a suite that was named."""
    sources = [split(said) for said in options.model if split(said)[1] != BASE]
    if options.run is not None:
        sources[0] = (options.run.resolve().name, "")
    names = [name or Path(source).name for name, source in sources] + [suite.name] * bool(options.suite)
    return Path("evaluations", file_name("-".join(names)))


def suite_of(catalog: Catalog, options: argparse.Namespace, own: Defaults) -> Suite:
    """What is drawn.

    Raises:
        ValueError: there is nothing to draw.
    """
    if options.suite is not None:
        return read_suite(*named_suite(catalog, options.suite), max_prompts=options.max_prompts)
    settings = (own.config.get("data") or {}).get("validation")
    if settings is None:
        models = ", ".join(options.model)
        raise ValueError(
            f"--suite: what is to be drawn? None of {models} is a run with held-out prompts; give an "
            "installed suite or a file of prompts"
        )
    source: PairSource = build({"source": settings}, ("source",), name="data.validation")["source"]
    prompts = [Prompt(text) for text in dict.fromkeys(source.prompts())]
    whose = options.config or (own.run and own.run.resolve().name)
    name = f"held-out prompts of {whose}" if whose else "held-out prompts"
    return drawn_of(name, prompts, max_prompts=options.max_prompts or own.evaluation["max_prompts"])


def check_size(options: argparse.Namespace, suite: Suite) -> None:
    """Refuses what has no intervals, and what no machine holds.

    Raises:
        ValueError: there is one prompt, or there are too many pictures.
    """
    count = len(suite.prompts)
    if count < 2:
        raise ValueError(f"--suite {suite.name}: one prompt alone; intervals are over prompts, so give more")
    total = len(options.model) * count * (options.seeds or 1)
    if total > MAX_PICTURES:
        raise ValueError(
            f"--seeds {options.seeds}: makes {total} pictures; at most {MAX_PICTURES} are compared"
        )


def scorers_of(catalog: Catalog, options: argparse.Namespace, own: Defaults) -> list[Scorer]:
    """Who judges: rewards, and features if there are any.

    Raises:
        ValueError: nobody does, or one is named twice.
    """
    entries = own.evaluation["rewards"] or []
    asked = [
        named_settings(catalog, "reward", said, entries if options.reward else ())
        for said in options.reward or entries
    ]
    names = [class_name(settings) for settings in asked]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--reward {again[0]}: judges already; name each once")
    found = [scorer("reward", settings) for settings in asked]
    looked = own.evaluation["features"] if options.features is None else options.features
    if looked is not None and looked != "none":
        own_features = own.evaluation["features"]
        settings = named_settings(catalog, "features", looked, [own_features] if own_features else ())
        found.append(scorer("features", settings))
    if not found:
        installed = ", ".join(catalog.names("reward")) or "none"
        raise ValueError(f"--reward: name who judges the pictures; installed: {installed}")
    return found
