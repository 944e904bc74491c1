"""`alignkit generate`: pictures of a run's model, base beside aligned."""

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from alignkit.components import Backbone
from alignkit.evaluation.compare import draw
from alignkit.evaluation.sheet import contact_sheet, to_pictures
from alignkit.mistakes import UsageError, cause, is_refusal
from alignkit.training import quiet_libraries

CONFIG = "config.yaml"
SHEET = "sheet.png"


class Parser(argparse.ArgumentParser):
    """Says what is wrong without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.prog} --help lists the options")


def generate(arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    quiet_libraries()
    options = parsed(arguments)
    try:
        _generate(options)
    except ValueError as error:
        root = cause(error)
        if is_refusal(root):
            raise UsageError(str(root)) from error
        raise
    return 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
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
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw"
    )
    return parser.parse_args(arguments)


def _generate(options: argparse.Namespace) -> None:
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    backbone, evaluation = opened(options.run)
    try:
        aligned = backbone.load(options.run)
    except ValueError as error:
        raise ValueError(
            f"--run {options.run}: no trained network to load; did its training come to its end?\n{error}"
        ) from error
    networks = {
        "base": backbone.build_policy().eval().to(options.device),
        "aligned": aligned.to(options.device),
    }
    num_steps = options.num_steps or evaluation["num_steps"]
    guidance = evaluation["guidance"] if options.guidance is None else options.guidance
    out: Path = options.out or options.run / "generated"
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for label, network in networks.items():
        image_PMCHW = draw(
            backbone,
            network,
            options.prompt,
            images_per_prompt=options.num,
            seed=options.seed,
            num_steps=num_steps,
            guidance=guidance,
            label=label,
        )
        pictures = to_pictures(image_PMCHW.flatten(0, 1))
        rows.append(pictures)
        for i, picture in enumerate(pictures):
            name = re.sub(r"\W+", "-", options.prompt[i // options.num]).strip("-")
            picture.save(out / f"{name}-{i % options.num}-{label}.png")
    labels = [prompt if i == 0 else "" for prompt in options.prompt for i in range(options.num)]
    contact_sheet(rows, list(networks), labels).save(out / SHEET)
    print(f"{2 * len(rows[0])} pictures and {SHEET} are in {out}")


def opened(run: Path) -> tuple[Backbone, dict[str, Any]]:
    """Builds a run's backbone from its config, and returns its evaluation settings.

    Raises:
        ValueError: the folder holds no finished run.
    """
    if not (run / CONFIG).is_file():
        raise ValueError(
            f"--run {run}: no {CONFIG} there; give the folder that `alignkit fit` said the run is in"
        )
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone", required=True)
    built: Namespace = parser.instantiate_classes(parser.parse_object({"backbone": config["backbone"]}))
    backbone = built.backbone
    assert isinstance(backbone, Backbone)
    return backbone, config["evaluation"]
