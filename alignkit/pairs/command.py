"""`alignkit pairs`: preference pairs of a model's own pictures, judged by rewards.

Draws several candidates of each prompt and scores them; keeps as pairs those whose scores differ by more than
a margin, in a parquet file with Pick-a-Pic's columns, which the source PickAPic reads. Seed, model and scores
stand beside every picture. What is killed goes on when it is called again, and comes out the same.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

import alignkit
from alignkit.building import build, read
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.components import Backbone
from alignkit.devices import device
from alignkit.evaluation import Evaluation
from alignkit.evaluation.drawing import PRECISIONS
from alignkit.evaluation.identity import surroundings, tensor_hash
from alignkit.evaluation.promptfiles import READERS, read_prompts
from alignkit.evaluation.scorers import class_name
from alignkit.files import written_to
from alignkit.generate import Run, aligned, config_of, opened
from alignkit.naming import defaults
from alignkit.pairs.candidates import Candidates, Generator, Order
from alignkit.pairs.files import is_there
from alignkit.pairs.judges import Judge, built, named_judges
from alignkit.pairs.making import PAIRS, SHEET, Making
from alignkit.pairs.pairing import Rule, told
from alignkit.pairs.selection import SELECTIONS
from alignkit.policy import fingerprint
from alignkit.rollout import Provenance
from alignkit.signals import resumable
from alignkit.training import quiet_libraries

CANDIDATES = "candidates"


class Model(NamedTuple):
    """What draws: a config's base, or what a run trained.

    Args:
        run: the run; None: a base.
        config: what the config says.
    """

    run: Run | None
    config: Mapping[str, Any]

    @property
    def evaluation(self) -> dict[str, Any]:
        """What the config says of drawing, or what is said where it is silent."""
        return {**defaults(Evaluation), **(self.config.get("evaluation") or {})}

    def network(self) -> tuple[Backbone, nn.Module]:
        """Loads the model."""
        if self.run is not None:
            return self.run.backbone, aligned(self.run)
        backbone = build(dict(self.config), ("backbone",))["backbone"]
        backbone.lora = None  # those of a base do nothing, and are drawn anew in every process
        return backbone, backbone.build_policy().eval()


def main(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    quiet_libraries()
    with refusals(), resumable():
        _pairs(catalog, arguments)
    return 0


def parser_of(run: Run | None) -> Parser:
    """The options of the command, with those of a run's conditioner."""
    parser = Parser(
        prog="alignkit pairs",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config", help="draws with the model that this config starts from")
    model.add_argument("--run", type=Path, help="draws with what this run trained, such as runs/NAME")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="what to draw: a text file, a prompt a line; or .jsonl, .json, .csv, .tsv or .parquet with a "
        "column of them",
    )
    asked.add_argument("--prompt", nargs="+", action="extend", help="what to draw; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pairs")
    judged = parser.add_argument_group("judging")
    judged.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME[=WEIGHT]",
        help="who judges; may be repeated: the score is the weighted sum. Or {name: NAME, weight: 1.0, ...} "
        "with settings; a NAME alone takes those of its entry in the config's evaluation.rewards. Report by "
        "another one",
    )
    judged.add_argument("--margin", type=float, default=0.0, help="by how much a pair's scores differ (0)")
    judged.add_argument(
        "--keep",
        choices=list(SELECTIONS),
        default="best-worst",
        help="the best and the worst candidate of a prompt, or all pairs of them (best-worst)",
    )
    drawn = parser.add_argument_group("drawing")
    drawn.add_argument("--num", type=int, default=4, metavar="K", help="candidates of each prompt (4)")
    drawn.add_argument("--num-steps", type=int, help="steps per picture; the config's if not given")
    drawn.add_argument("--guidance", type=float, help="classifier-free guidance; the config's if not given")
    drawn.add_argument("--seed", type=int, default=0, help="of which every picture gets its own (0)")
    drawn.add_argument("--batch-size", type=int, default=32, help="pictures drawn at once (32)")
    drawn.add_argument(
        "--precision", choices=list(PRECISIONS), default="32-true", help="of the network (32-true)"
    )
    drawn.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="where"
    )
    if run is not None and run.conditioner is not None:
        run.conditioner.add_options(parser.add_argument_group("for whom"))
    return parser


def _pairs(catalog: Catalog, arguments: list[str]) -> None:
    # twice, as in `alignkit generate`: a run's conditioner has options of its own
    named = Parser(add_help=False, allow_abbrev=False)
    named.add_argument("--run", type=Path)
    if {"-h", "--help"} & set(arguments):
        folder = named.parse_known_args(arguments)[0].run
        parser_of(opened(folder) if folder else None).parse_args(["--help"])
    first = parser_of(None).parse_known_args(arguments)[0]
    run = None if first.run is None else opened(first.run)
    options = parser_of(run).parse_args(arguments)
    _check(options)
    prompts = _prompts(options)
    config = read(catalog, options.config) if run is None else config_of(run.folder)
    model = Model(run, config)
    entries = model.evaluation["rewards"] or []
    judges = named_judges(catalog, options.reward, entries)
    rule = Rule({name: judge.weight for name, judge in judges.items()}, options.margin, options.keep)
    _warn(judges, {class_name(entry) for entry in entries})
    rewards = built(judges, options.device)
    generator = _generator(model, options)
    order = _order(generator, model, options, prompts, judges)
    candidates = Candidates(options.out / CANDIDATES, order)
    with written_to(options.out):
        is_there(options.out / PAIRS, told(order, rule))  # refuses at once what it would refuse after hours
        missing = candidates.missing()
        how = order.provenance
        print(
            f"{len(prompts)} prompts x {options.num} candidates by {how.generator[:12]}, "
            f"{how.num_steps} {how.sampler} steps, guidance {how.guidance:g}; "
            f"{len(missing)} of {len(candidates.parts)} files to draw",
            flush=True,
        )
        console = Console(stderr=True)
        for part in track(
            missing, "drawing", console=console, transient=True, disable=not console.is_terminal
        ):
            candidates.make(part, generator, rewards)
        remarks = {"versions": _versions(), "command": shlex.join(["alignkit", "pairs", *arguments])}
        summary = Making(candidates, rule, remarks).write(options.out)
    mean = ", ".join(f"{name} {value:.4g}" for name, value in summary["mean_score"].items())
    print(
        f"{summary['pairs']} pairs of {summary['prompts']} prompts, "
        f"{summary['prompts_without_pairs']} without; mean score: {mean}"
    )
    print(f"{PAIRS} and {SHEET} are in {options.out}; {CANDIDATES} there is needed for other pairs only")


def _check(options: argparse.Namespace) -> None:
    for name, least in (("num", 2), ("margin", 0), ("num_steps", 1), ("guidance", 0), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def _prompts(options: argparse.Namespace) -> tuple[str, ...]:
    """What is drawn, each once."""
    lines: Sequence[str] = options.prompt or []
    if options.prompts is not None:
        # a pipe has no suffix
        suffix = options.prompts.suffix.lower()
        kind = suffix if suffix in READERS else ".txt"
        lines = [prompt.text for prompt in read_prompts(options.prompts, "--prompts", kind=kind)]
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ValueError(f"--prompts {options.prompts}: there are none in it; write one a line")
    return prompts


def _warn(judges: Mapping[str, Judge], reporting: set[str]) -> None:
    if both := sorted(reporting & set(judges)):
        print(
            f"alignkit: warning: {', '.join(both)} judges the pairs, and stands in evaluation.rewards of the "
            "config: a judge that was trained on reports too well; report by another one",
            file=sys.stderr,
        )


def _generator(model: Model, options: argparse.Namespace) -> Generator:
    backbone, network = model.network()
    tokens_LD = None
    if model.run is not None and model.run.conditioner is not None:
        tokens_LD = model.run.conditioner.chosen(options)
    return Generator(backbone, network.to(options.device), options.precision, tokens_LD)


def _order(
    generator: Generator,
    model: Model,
    options: argparse.Namespace,
    prompts: tuple[str, ...],
    judges: Mapping[str, Judge],
) -> Order:
    own, tokens_LD = model.evaluation, generator.tokens_LD
    audience = "" if tokens_LD is None else tensor_hash(tokens_LD)
    provenance = Provenance(
        round=0,
        generator=fingerprint(dict(generator.network.named_parameters())),
        backbone=type(generator.backbone).__name__,
        sampler=generator.backbone.solver,
        num_steps=options.num_steps or own["num_steps"],
        guidance=own["guidance"] if options.guidance is None else options.guidance,
        seed=options.seed,
        precision=options.precision,
    )
    settings = {name: judge.settings for name, judge in judges.items()}
    around = surroundings(generator.backbone, generator.network)
    return Order(provenance, audience, prompts, options.num, options.batch_size, settings, around)


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"alignkit": alignkit.__version__, **libraries}
