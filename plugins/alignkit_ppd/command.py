"""`alignkit users`: embeds the people behind a config's pairs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from alignkit.building import build, read
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.components import PairSource
from alignkit.devices import device
from alignkit.training import quiet_libraries
from alignkit_ppd.conditioner import UserTokens, summary


def main(catalog: Catalog, arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake.
    """
    parser = Parser(
        prog="alignkit users", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a config whose conditioner is UserTokens")
    parser.add_argument("--out", type=Path, required=True, help="file to write, such as users.safetensors")
    parser.add_argument(
        "--device",
        type=device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the encoder runs",
    )
    options = parser.parse_args(arguments)
    quiet_libraries()
    with refusals():
        _embed(read(catalog, options.config), options)
    return 0


def _embed(config: dict[str, object], options: argparse.Namespace) -> None:
    conditioner = build(config, ("conditioner",)).get("conditioner")
    if not isinstance(conditioner, UserTokens):
        raise ValueError(f"--config {options.config}: its conditioner must be UserTokens")
    source: PairSource | None = None
    if conditioner.support is None:
        data = build(config, ("data",)).get("data")
        source = data.train if data else None
    conditioner.use(conditioner.embed(source, torch.device(options.device)))
    conditioner.users.write(options.out)
    print(f"{summary(conditioner.users)}, in {options.out}")
