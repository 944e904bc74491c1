"""`alignkit cache`: encodes a config's pictures and prompts once, for data.cache."""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from alignkit.building import build, read
from alignkit.callbacks import ProgressBar
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.data.cache.making import Making, Wanted, shown_size
from alignkit.data.cache.manifest import Origin
from alignkit.data.cache.table import source_hash
from alignkit.data.module import AlignData
from alignkit.data.pictures import framed
from alignkit.files import only_one
from alignkit.signals import resumable
from alignkit.stopping import Stopping
from alignkit.training import quiet_libraries
from alignkit.watch import watched

REFERENCE = "--reference"
DTYPES = ("float16", "bfloat16", "float32")
# of what is to be written, as much must be free
SPARE = 1.1
DESCRIPTION = """\
Encodes every picture of a config's training and held-out pairs into its latents' mean and log-variance,
and every prompt, and the empty one, into what the networks are told. Pictures and prompts that occur
several times are encoded once. Training from it loads neither autoencoder nor text encoders, and reads
no picture:

  alignkit cache --config FILE --out FOLDER
  alignkit fit --config FILE --data.cache FOLDER

A run that was killed makes what is missing when it is called again. A cache of other pictures, prompts,
encoders, or another resolution is refused when it is trained from, in words.
"""
# measured: 60 steps of the embedded default on the CPU, 1,144 pictures of 32 x 32; of the distance that the
# weights went, the difference from the run without a cache, and held-out loss (0.670538 without a cache):
# float32 0.002 %, 0.670538; float16 0.23 %, 0.670420; bfloat16 1.8 %, 0.670002
DTYPE_HELP = (
    "type of what is stored (float16). float32 trains as without a cache. The others take half the space "
    "and round: float16 to 11 bits, which moved trained weights by 0.2 %% of the way that they went; "
    "bfloat16, which holds every magnitude, to 8 bits, 1.8 %%"
)


def cache(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    if REFERENCE in arguments:
        from alignkit.data.bank.command import bank  # it loads all that training does

        return bank(catalog, [argument for argument in arguments if argument != REFERENCE])
    options = parser().parse_args(arguments)
    quiet_libraries()
    with refusals(), resumable():
        _cache(catalog, options)
    return 0


def parser() -> Parser:
    """The options of the command."""
    options = Parser(
        prog="alignkit cache",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument(
        REFERENCE,
        action="store_true",
        help="ask the reference about the pairs in place of that: see alignkit cache --reference --help",
    )
    options.add_argument("--config", required=True, help="a config, packaged or not")
    options.add_argument(
        "--out", type=Path, help="folder for the cache; the config's data.cache if not given"
    )
    options.add_argument("--dtype", choices=DTYPES, default="float16", help=DTYPE_HELP)
    options.add_argument(
        "--batch-size", type=int, default=16, help="pictures, or prompts, encoded at once per device (16)"
    )
    options.add_argument(
        "--file-rows",
        type=int,
        default=1024,
        help="the most pictures, or prompts, in a file: what a killed run makes again (1024, or 64 MiB)",
    )
    options.add_argument("--yes", action="store_true", help="go on even where the disk seems too small")
    options.add_argument("--accelerator", help="such as gpu or cpu; the config's if not given, else any")
    options.add_argument("--devices", help="a number, or auto; the config's if not given, else auto")
    options.add_argument("--num-nodes", type=int, help="the config's if not given, else 1")
    return options


def _cache(catalog: Catalog, options: argparse.Namespace) -> None:
    for name, value in (("--batch-size", options.batch_size), ("--file-rows", options.file_rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    config = read(catalog, options.config)
    told = config.get("data") or {}
    folder = options.out or (Path(told["cache"]) if told.get("cache") else None)
    if folder is None:
        raise ValueError("--out: give a folder for the cache, or a config that has data.cache")
    built = build(config, ("backbone", "data"), name=options.config)
    data: AlignData = built["data"]
    refuse_what_varies(data)
    origin = Origin(
        encoders=dict(built["backbone"].encoder_hashes()),
        resolution=data.resolution,
        framing=framed(data.max_pixels),
        sources={split: source_hash(source) for split, source in data.sources().items()},
        dtype=options.dtype,
    )

    def allowed(size: int) -> str:
        return "" if options.yes else disk_refusal(folder, size)

    wanted = Wanted(folder, origin, options.batch_size, options.file_rows, allowed)
    where = trainer_options(config.get("trainer") or {}, options)
    make(Making(built["backbone"], data, wanted), folder, CacheProgress(), where, option="--data.cache")


def make(
    making: pl.LightningModule, folder: Path, progress: ProgressBar, where: Mapping[str, Any], *, option: str
) -> None:
    """Makes what is missing of a folder, while no other process may.

    Args:
        making: what is run by ``Trainer.predict``.
        folder: which.
        progress: says how far it is.
        where: options of the Trainer, such as devices.
        option: of ``alignkit fit``, that trains from it.
    """
    trainer = pl.Trainer(
        **where,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[progress],
    )
    Stopping().attach(trainer)
    with only_one(folder) if trainer.is_global_zero else nullcontext(), watched(trainer):
        trainer.predict(making, return_predictions=False)
    if trainer.is_global_zero:
        print(f"{folder} is complete; train from it with {option} {folder}")


class CacheProgress(ProgressBar):
    """How many batches this process has encoded."""

    @property
    def predict_description(self) -> str:
        return "encoding"


def refuse_what_varies(data: AlignData) -> None:
    """Refuses pictures that are seen in more than one way.

    Raises:
        ValueError: they are.
    """
    if not data.framing.fixed or data.bucket_step is not None:
        raise ValueError(
            "alignkit cache: a cache holds one square of each picture; set data.crop_shift and data.flip to "
            "0 and data.bucket_step to null, or train without a cache"
        )


def trainer_options(config: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Where to encode: as the command line says, else as the config would train."""
    found: dict[str, Any] = {}
    for name, default in (("accelerator", "auto"), ("devices", "auto"), ("num_nodes", 1)):
        given = getattr(options, name)
        value = config.get(name) if given is None else given
        found[name] = default if value is None else value
    if isinstance(found["devices"], str) and found["devices"].lstrip("-").isdigit():
        found["devices"] = int(found["devices"])
    return found


def disk_refusal(folder: Path, size: int) -> str:
    """Why not to write so many bytes to a folder; empty to go on. Somebody at a terminal is asked."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= size * SPARE:
        return ""
    short = f"{shown_size(size)} are to be written to {folder}, and {shown_size(free)} are free there"
    if not sys.stdin.isatty() or "LOCAL_RANK" in os.environ:
        return f"{short}. Free some, give another --out, or go on with --yes"
    answer = input(f"{short}. Go on? [y/N] ")
    return "" if answer.strip().lower() in ("y", "yes") else f"{short}; nothing was written"
