"""`alignkit cache --reference`: asks a config's reference about its pairs once, for data.bank."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from alignkit import rules
from alignkit.building import build
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.data.bank.making import Making, Wanted
from alignkit.data.cache.command import CacheProgress, disk_refusal, make
from alignkit.data.module import AlignData
from alignkit.declared import declared, named_class
from alignkit.mistakes import UsageError
from alignkit.module import AlignModule
from alignkit.planning.run import counted, run_of
from alignkit.signals import resumable
from alignkit.training import quiet_libraries, read_config

DESCRIPTION = """\
Asks the reference about every pair of a config, as often as a run visits it, and keeps one number for each
picture and visit: how well it denoises the point that the run will draw. Training from it runs no reference,
and holds none in memory. The numbers depend on neither objective, beta, learning rate nor labels, so that all
runs of a sweep share them:

  alignkit cache --config FILE --out LATENTS
  alignkit cache --reference --config FILE --data.cache LATENTS --out BANK
  alignkit fit --config FILE --data.cache LATENTS --data.bank BANK --objective.beta 500

A run that was killed makes what is missing when it is called again. A bank of another reference, seed,
sampler, precision, or other pairs is refused when it is trained from, in words; and 64 pairs are asked about
again at the start.
"""


def bank(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    options, of_fit = parser().parse_known_args(arguments)
    for name in ("visits", "file_rows"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    quiet_libraries()
    config = read_config(catalog, of_fit)
    with refusals(), resumable():
        _bank(config, options)
    return 0


def parser() -> Parser:
    """The options of the command."""
    options = Parser(
        prog="alignkit cache --reference",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Everything else is what alignkit fit takes: --config FILE, and overrides such as "
        "--data.batch_size 4, which says how many pairs are asked about at once per device.",
        usage="alignkit cache --reference --config CONFIG [options] [options of alignkit fit]",
        allow_abbrev=False,
    )
    options.add_argument("--out", type=Path, help="folder for the bank; the config's data.bank if not given")
    options.add_argument(
        "--visits",
        type=int,
        help="how often each training pair is asked about; a run that visits pairs more often draws the same "
        "steps and noise again. As often as the config's run visits them if not given",
    )
    options.add_argument(
        "--file-rows", type=int, default=1024, help="pairs in a file: what a killed run makes again (1024)"
    )
    options.add_argument("--yes", action="store_true", help="go on even where the disk seems too small")
    return options


def _bank(config: dict[str, Any], options: argparse.Namespace) -> None:
    told = config["data"]["bank"]
    folder = options.out or (Path(told) if told else None)
    if folder is None:
        raise ValueError("--out: give a folder for the bank, or a config that has data.bank")
    config["data"]["bank"] = str(folder)  # so that what goes with no bank is refused
    rules.check(declared(config))
    module, data = parts_of(config)
    data.bank = None  # it is not there yet

    def allowed(size: int) -> str:
        return "" if options.yes else disk_refusal(folder, size)

    visits = options.visits or needed_visits(config, data)
    where = {name: config["trainer"][name] for name in ("accelerator", "devices", "num_nodes", "precision")}
    making = Making(module, data, Wanted(folder, visits, options.file_rows, allowed))
    make(making, folder, BankProgress(), where, option="--data.bank")


class BankProgress(CacheProgress):
    """How many batches this process has asked about."""

    @property
    def predict_description(self) -> str:
        return "asking the reference"


def parts_of(config: dict[str, Any]) -> tuple[AlignModule, AlignData]:
    """Model and data of a whole config, as ``alignkit fit`` puts them together."""
    made = build(config, ("objective", "sampler", "conditioner", "backbone", "data"))
    objective, sampler, data = made["objective"], made["sampler"], made["data"]
    assert isinstance(data, AlignData)
    data.reads, data.validation_reads = sampler.reads or objective.reads, objective.reads
    reference = named_class(config["reference"])() if config.get("reference") else None
    module = AlignModule(
        objective,
        sampler,
        made["backbone"],
        torch.optim.AdamW,  # which is never made
        conditioner=made.get("conditioner"),
        reference=reference,
        seed=config["model"]["seed"],
        compile=declared(config).compile,
    )
    return module, data


def needed_visits(config: dict[str, Any], data: AlignData) -> int:
    """How often a run visits each of its pairs.

    Raises:
        ValueError: it has no end.
    """
    epochs = run_of(config, counted(data.train.labels(), data.ties)).epochs
    if epochs is None:
        raise ValueError("--visits: this run has no end; say how often each pair is asked about")
    return max(1, math.ceil(epochs))
