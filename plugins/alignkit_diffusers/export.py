"""`alignkit export`: a run's network in the formats of other programs, with a model card."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import track

from alignkit import Paper
from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.evaluation.callback import SUMMARY
from alignkit.files import sha256
from alignkit.generate import CONFIG, Run, opened
from alignkit.policy import fingerprint
from alignkit.training import quiet_libraries
from alignkit_diffusers.formats import FORMATS, Order
from alignkit_diffusers.hub import check_name, push
from alignkit_diffusers.loading import PipelineFolder, Store
from alignkit_diffusers.model_card import Card, written
from alignkit_diffusers.place import CARD, SUFFIX, Place
from alignkit_diffusers.trained import Trained, trained

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def main(catalog: Catalog, arguments: list[str]) -> int:
    """Runs the command; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    quiet_libraries()
    options = parser().parse_args(arguments)
    with refusals():
        _export(catalog, options, arguments)
    return 0


def parser() -> Parser:
    """The options of the command."""
    formats = "\n".join(f"  {name:10} {format_.help}" for name, format_ in FORMATS.items())
    options = Parser(
        prog="alignkit export",
        description=f"{(__doc__ or '').partition(': ')[2]}\n\nformats:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--run", type=Path, required=True, help="a run's folder, such as runs/NAME")
    options.add_argument("--format", choices=FORMATS, required=True, help="see above")
    options.add_argument(
        "--out",
        type=Path,
        help=f"a folder, or for one-file formats a file NAME{SUFFIX}; RUN/export/FORMAT if not given",
    )
    options.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the written weights (float32)"
    )
    options.add_argument(
        "--checkpoint",
        metavar="last|PATH",
        help="export what a checkpoint holds; what the run ended with if not given",
    )
    weights = options.add_mutually_exclusive_group()
    weights.add_argument(
        "--ema",
        dest="averaged",
        action="store_const",
        const=True,
        help="the moving average of the weights; so anyway where the run keeps one",
    )
    weights.add_argument(
        "--raw", dest="averaged", action="store_const", const=False, help="the weights without averaging"
    )
    options.add_argument("--overwrite", action="store_true", help="replace what was exported there before")
    options.add_argument(
        "--push", metavar="OWNER/NAME", help="then send it to the Hugging Face hub, to a private repository"
    )
    options.add_argument("--public", action="store_true", help="with --push: to a public repository")
    return options


def _export(catalog: Catalog, options: argparse.Namespace, arguments: Sequence[str]) -> None:
    format_ = FORMATS[options.format]
    place = _place(options)
    run, config = _opened(options.run)
    with _shown("loading the network"):
        source = trained(run, config, checkpoint=options.checkpoint, averaged=options.averaged)
        if format_.needs_adapters and not source.has_adapters:
            fitting = ", ".join(name for name, other in FORMATS.items() if not other.needs_adapters)
            raise ValueError(
                f"--format {options.format}: the run {options.run} trained all weights and has no adapters; "
                f"the formats of such a run are {fitting}"
            )
        base_hash = _base_fingerprint(source)
    title = options.run.resolve().name
    order = Order(
        source,
        DTYPES[options.dtype],
        place.path.name if place.is_file else format_.file.replace("NAME", title),
        title,
        config["objective"]["class_path"].rpartition(".")[2],
        config["data"]["resolution"],
    )
    code = format_.example(order, options.push or str(place.folder), bool(options.push))
    with place.staged() as folder:
        with _shown("writing"):
            format_.write(order, folder)
        weights = [path for path in sorted(folder.rglob("*")) if path.suffix in (SUFFIX, ".bin")]
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in weights}
        hashes = [sha256(path) for path in track(weights, "hashing", transient=True, disable=_quiet())]
        card = Card(
            title=title,
            format=options.format,
            command=shlex.join(["alignkit", "export", *arguments]),
            base=source.backbone.path,
            hub_base=_is_on_hub(source.backbone.store),
            fingerprint=base_hash,
            origin=source.origin,
            dtype=options.dtype,
            adapted=source.has_adapters,
            solver=source.backbone.solver,
            config=(options.run / CONFIG).read_text(encoding="utf-8"),
            parsed=config,
            papers=_papers(catalog, config),
            summary=_summary(options.run) if source.evaluated else {},
            hashes=dict(zip(sizes, hashes, strict=True)),
            example=code,
        )
        (folder / CARD).write_text(written(card), encoding="utf-8")
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {name: place.card if name == CARD else place.folder / name for name in names}
    print(f"{options.format}, {options.dtype}, of {source.origin}: {place.path}")
    for path in files.values():
        print(f"  {_size(path.stat().st_size):>9}  {path}")
    print(f"\n{code}")
    if options.push:
        _push(files, options, title)


def _place(options: argparse.Namespace) -> Place:
    """Where it is written. Refuses, before anything is loaded, what needs no run to be refused."""
    if options.public and not options.push:
        raise ValueError("--public is about --push; give --push OWNER/NAME, or leave --public out")
    if options.push:
        check_name(options.push)
    out = options.out or options.run / "export" / options.format
    if out.suffix == SUFFIX and not FORMATS[options.format].file:
        raise ValueError(f"--out {out}: the format {options.format} is a folder; give a folder's name")
    return Place(out, overwrite=options.overwrite)


def _opened(folder: Path) -> tuple[Run, dict[str, Any]]:
    """A run, and its config."""
    try:
        run = opened(folder)
    except ValueError as error:
        if not (folder / CONFIG).is_file():
            raise
        raise ValueError(
            f"--run {folder}: cannot load the base model that it started from, which an export needs\n{error}"
        ) from error
    config: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    return run, config


def _base_fingerprint(source: Trained) -> str:
    """A hash of the base network's weights in float32, the same whether adapters stand on them or not."""
    network = source.network if source.has_adapters else source.backbone.built()
    return fingerprint(
        {
            name.replace(".base_layer.", "."): weight
            for name, weight in network.named_parameters()
            if "lora_" not in name
        }
    )


def _is_on_hub(store: Store) -> bool:
    return isinstance(store, PipelineFolder) and not Path(store.root).exists()


def _papers(catalog: Catalog, config: dict[str, Any]) -> list[Paper]:
    """The papers that a config's components are of."""
    named = set(
        re.findall(r"\.(\w+)'", repr([config.get(part) for part in ("objective", "sampler", "weighting")]))
    )
    return [p for papers in catalog.papers.values() for p in papers if named & set(p.components)]


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return summary


def _push(files: dict[str, Path], options: argparse.Namespace, title: str) -> None:
    try:
        with _shown(f"sending to {options.push}"):
            address = push(files, options.push, public=options.public, message=f"{title}, {options.format}")
    except ValueError as error:
        raise ValueError(f"{error}\nNothing is lost: all is written where it says above") from error
    print(f"sent to {address}")


@contextmanager
def _shown(what: str) -> Iterator[None]:
    """Says what takes its time, while it does."""
    if _quiet():
        yield
        return
    with Console().status(what):
        yield


def _quiet() -> bool:
    return not sys.stdout.isatty()


def _size(count: int) -> str:
    """A number of bytes, to be read."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
