"""`alignkit generate`: pictures of a run's model, base beside aligned."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from alignkit.building import build
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.components import Backbone, Conditioner
from alignkit.devices import device
from alignkit.evaluation import Evaluation
from alignkit.evaluation.compare import draw
from alignkit.evaluation.drawing import file_name
from alignkit.evaluation.sheet import contact_sheet, to_pictures
from alignkit.mistakes import read_config
from alignkit.naming import defaults
from alignkit.training import quiet_libraries

CONFIG = "config.yaml"
SHEET = "sheet.png"


class Run(NamedTuple):
    """What a run's folder says of drawing."""

    folder: Path
    backbone: Backbone
    conditioner: Conditioner | None
    evaluation: dict[str, Any]


def generate(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    quiet_libraries()
    with refusals():
        _generate(arguments)
    return 0


def parser_of(run: Run | None) -> Parser:
    """The options of the command, with those of a run's conditioner."""
    parser = Parser(
        prog="alignkit generate", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a run's folder, such as runs/NAME")
    parser.add_argument(
        "--prompt", nargs="+", action="extend", required=True, help="what to draw; may be repeated"
    )
    parser.add_argument("--num", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--num-steps", type=int, help="DDIM steps; the run's own if not given")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance; the run's own if not given")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture")
    parser.add_argument("--out", type=Path, help="folder for the pictures; RUN/generated if not given")
    parser.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw"
    )
    if run is not None and run.conditioner is not None:
        run.conditioner.add_options(parser.add_argument_group("for whom"))
    return parser


def _generate(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        named = Parser(add_help=False, allow_abbrev=False)
        named.add_argument("--run", type=Path)
        folder = named.parse_known_args(arguments)[0].run
        parser_of(opened(folder) if folder else None).parse_args(["--help"])
    # twice: a run's conditioner has options of its own, and the mistakes that need no run come first
    run = opened(parser_of(None).parse_known_args(arguments)[0].run)
    options = parser_of(run).parse_args(arguments)
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    backbone = run.backbone
    base = backbone.build_policy().eval()
    trained = aligned(run)
    tokens_LD = None if run.conditioner is None else run.conditioner.chosen(options)
    drawn = {"base": (base.to(options.device), None), "aligned": (trained.to(options.device), tokens_LD)}
    num_steps = options.num_steps or run.evaluation["num_steps"]
    guidance = run.evaluation["guidance"] if options.guidance is None else options.guidance
    out: Path = options.out or options.run / "generated"
    out.mkdir(parents=True, exist_ok=True)
    names = _names(options.prompt)
    rows = []
    for label, (network, told) in drawn.items():
        image_PMCHW = draw(
            backbone,
            network,
            options.prompt,
            images_per_prompt=options.num,
            seed=options.seed,
            num_steps=num_steps,
            guidance=guidance,
            tokens_ULD=None if told is None else told[None],
            label=label,
        )
        pictures = to_pictures(image_PMCHW.flatten(0, 1))
        rows.append(pictures)
        for i, picture in enumerate(pictures):
            picture.save(out / f"{names[i // options.num]}-{i % options.num}-{label}.png")
    labels = [prompt if i == 0 else "" for prompt in options.prompt for i in range(options.num)]
    contact_sheet(rows, list(drawn), labels).save(out / SHEET)
    print(f"{2 * len(rows[0])} pictures and {SHEET} are in {out}")


def _names(prompts: Sequence[str]) -> list[str]:
    """What pictures of each prompt are called; those that would be called alike are numbered."""
    plain = [file_name(prompt) for prompt in prompts]
    return [
        f"{name}-again{again}" if (again := plain[:place].count(name)) else name
        for place, name in enumerate(plain)
    ]


def aligned(run: Run) -> nn.Module:
    """The trained network.

    Raises:
        ValueError: the run has none.
    """
    try:
        if run.conditioner is None:
            return run.backbone.load(run.folder)
        network = run.backbone.build_policy()
        run.conditioner.attach(network)
        run.conditioner.load(network, run.folder)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"--run {run.folder}: no trained network to load; did its training come to its end?\n{error}"
        ) from error
    return network.eval()


def opened(folder: Path) -> Run:
    """Builds what a run's config says of drawing.

    Raises:
        ValueError: the folder holds no finished run.
    """
    config = config_of(folder)
    built = build(config, ("backbone", "conditioner"))
    told = {**defaults(Evaluation), **(config.get("evaluation") or {})}
    return Run(folder, built["backbone"], built.get("conditioner"), told)


def config_of(folder: Path) -> dict[str, Any]:
    """What a run's config says.

    Raises:
        UsageError: it cannot be read.
        ValueError: the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"--run {folder}: no {CONFIG} there; give the folder that `alignkit fit` said the run is in"
        )
    return read_config(folder / CONFIG, str(folder / CONFIG))
