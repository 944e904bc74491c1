"""`alignkit fit` and `alignkit validate`: LightningCLI over the catalog's components."""

import difflib
import inspect
import json
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from alignkit import components
from alignkit.callbacks import ProgressBar, SampleGrid, Throughput
from alignkit.catalog import Catalog, CatalogError
from alignkit.cli import fail
from alignkit.configfiles import find_config
from alignkit.data import AlignData
from alignkit.evaluation import Evaluation
from alignkit.module import AlignModule

# where a config names a component: the path of its key, and the kind
TOP_LEVEL = {"objective": components.Objective, "weighting": components.Weighting, "sampler":
components.Sampler,
             "backbone": components.Backbone, "reference": components.Reference}  # fmt: skip
PLACES = {
    "objective": "objective",
    "weighting": "weighting",
    "sampler": "sampler",
    "backbone": "backbone",
    "data.train": "source",
    "data.validation": "source",
    "evaluation.rewards": "reward",
    "evaluation.metrics": "metric",
}
RUN_VARIABLE = "ALIGNKIT_RUN"
_REFERENCE = re.compile(r"\$\{(?!\.)([A-Za-z_]\w*(?:[.\[][^:{}]*)?)\}")  # ${a.b}; not ${.b}, not ${oc.env:X}
_NUMBER = re.compile(r"\s*[-+]?\d+(\.\d*)?[eE][-+]?\d+\s*")


class UsageError(Exception):
    """A mistake on the command line or in a config, in words."""


class Parser(LightningArgumentParser):
    """Says what is wrong in a few lines, without the usage of five hundred options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a class: let the outer one speak, it knows the key
            super().error(message, ex)
        match = re.search(r"(?:[Oo]ption|[Kk]ey|arguments:) ['\"]?(?:--)?([\w.]+)", str(message))
        wrong = match[1] if match else ""
        near = [name for name in difflib.get_close_matches(wrong, self._known(), 1) if name != wrong]
        raise UsageError(message + (f"\nDid you mean {near[0]!r}?" if near else ""))

    def _known(self) -> list[str]:
        parsers = [self, *(getattr(self._subcommands_action, "choices", None) or {}).values()]
        return [action.dest for parser in parsers for action in parser._actions]


class CLI(LightningCLI):
    """LightningCLI with the catalog's components as top-level keys."""

    def __init__(self, *args: Any, catalog: Catalog, command: str, **options: Any) -> None:
        self._catalog, self._command = catalog, command
        super().__init__(*args, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # only the one that was asked for: building a parser takes a second
        return {
            name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self._command
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--vars", type=dict[str, Any], default={}, help="free values, used as ${vars.NAME}"
        )
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="folder that the run writes to; runs/<config> without it",
        )
        for name, base in TOP_LEVEL.items():
            required = name in ("objective", "sampler", "backbone")
            parser.add_subclass_arguments(base, name, required=required)
            parser.link_arguments(name, f"model.{name}", apply_on="instantiate")
        parser.add_argument("--optimizer", type=OptimizerCallable, required=True, help="such as AdamW")
        parser.link_arguments("optimizer", "model.optimizer")
        parser.add_lightning_class_args(Evaluation, "evaluation")
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # sys.argv stays as it is: DDP's launcher runs it again
        self.config = parser.parse_args(args)

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """Gives the run its folder and its callbacks, without pinning them in the config that is saved."""
        config = self.config[self._command]
        folder = run_folder(config)
        options["default_root_dir"] = folder
        if config.trainer.logger in (None, True):
            options["logger"] = TensorBoardLogger(folder, name="", version="")
        callbacks: list[pl.Callback] = [Throughput()]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if config.trainer.enable_checkpointing is not False:
            callbacks.append(ModelCheckpoint(save_last=True, save_on_exception=True))
        self.trainer_defaults["callbacks"] = callbacks
        trainer: pl.Trainer = super().instantiate_trainer(**options)
        return trainer

    def after_fit(self) -> None:
        """Validates what the run ended with, and so evaluates it."""
        self.trainer.validate(self.model, self.datamodule, verbose=False)


def run_folder(config: Namespace) -> str:
    """Names a folder that no other run has written to, the same in every process of a run."""
    if RUN_VARIABLE not in os.environ:
        names = [Path(str(path)).stem for path in config.get("config") or []]
        wanted = Path(
            config.run or Path("runs", names[-1] if names else config.objective.class_path.split(".")[-1])
        )
        folder, number = wanted, 2
        while not config.get("ckpt_path") and folder.exists() and any(folder.iterdir()):
            folder, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
        os.environ[RUN_VARIABLE] = str(folder)
    return os.environ[RUN_VARIABLE]


def defaults(cls: type) -> dict[str, Any]:
    """A class's own default arguments, as a config writes them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "x")
    values = parser.get_defaults().as_dict().get("x") or {}
    optional = {n for n, p in inspect.signature(cls).parameters.items() if p.default is not p.empty}
    return {name: value for name, value in values.items() if name in optional}


def named(catalog: Catalog, kind: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Expands a component's name. It starts from its own defaults: nothing leaks from the one named before."""
    if kind == "optimizer":
        return {"class_path": f"torch.optim.{name}", "init_args": arguments}
    cls = catalog.resolve(kind, name)
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": {**defaults(cls), **arguments}}


def expand(catalog: Catalog, kind: str, value: Any) -> Any:
    """Turns what a config says of a component into what jsonargparse reads: `DMPO`, or `{name: DMPO, beta: 2000}`."""
    if isinstance(value, list):
        return [expand(catalog, kind, item) for item in value]
    if isinstance(value, str):
        return {"class_path": value} if "." in value else named(catalog, kind, value, {})
    if not isinstance(value, dict):
        return value
    if "name" in value:
        if "class_path" in value:
            raise UsageError(f"{kind}: give name or class_path, not both")
        return named(catalog, kind, value["name"], {k: v for k, v in value.items() if k != "name"})
    if "class_path" in value and "." not in str(value["class_path"]):
        return {**value, **named(catalog, kind, value["class_path"], value.get("init_args") or {})}
    if value and not {"class_path", "init_args", "dict_kwargs"} & value.keys():
        return {"init_args": value}
    return value


def expand_config(catalog: Catalog, config: dict[str, Any]) -> dict[str, Any]:
    """Expands every component that a config names."""
    config = dict(config)
    for place, kind in {**PLACES, "optimizer": "optimizer"}.items():
        head, _, tail = place.partition(".")
        if not tail and head in config:
            config[head] = expand(catalog, kind, config[head])
        elif tail and isinstance(config.get(head), dict) and tail in config[head]:
            config[head] = {**config[head], tail: expand(catalog, kind, config[head][tail])}
    return config


def expand_arguments(catalog: Catalog, arguments: list[str]) -> list[str]:
    """Expands components named on the command line, and finds the configs."""
    places = {**PLACES, "optimizer": "optimizer"}
    expanded, rest = [], iter(arguments)
    for argument in rest:
        match = re.fullmatch(
            r"--(config|c|" + "|".join(map(re.escape, places)) + r")(\.help)?(?:=(.*))?", argument, re.S
        )
        match = match or re.fullmatch(r"-(c)()(?:=(.*))?", argument)
        if not match:
            expanded.append(argument)
            continue
        place, suffix, value = match[1], match[2] or "", match[3]
        if value is None:
            value = next(rest, "")
        if place in ("config", "c"):
            expanded.append(f"--config={find_config(value)}")
        elif suffix and re.fullmatch(r"\w+", value):
            cls = catalog.resolve(places[place], value)
            expanded.append(f"--{place}.help={cls.__module__}.{cls.__qualname__}")
        elif re.fullmatch(r"[A-Za-z]\w*", value) and value not in ("null", "None"):
            expanded.append(f"--{place}={json.dumps(named(catalog, places[place], value, {}))}")
        else:
            expanded.append(f"--{place}{suffix}={value}")
    return expanded


def absolute(value: Any, command: str) -> Any:
    """Rewrites ``${a.b}`` to ``${<command>.a.b}``: the root of an interpolation is the main parser."""
    if isinstance(value, str):
        return _REFERENCE.sub(
            lambda m: m[0] if m[1].startswith(f"{command}.") else f"${{{command}.{m[1]}}}", value
        )
    if isinstance(value, dict):
        return {name: absolute(item, command) for name, item in value.items()}
    if isinstance(value, list):
        return [absolute(item, command) for item in value]
    return value


def train(catalog: Catalog, command: str, arguments: list[str], debug: bool) -> int:
    """Runs ``fit`` or ``validate``; returns the exit code."""

    def load(text: str) -> Any:
        value = float(text) if _NUMBER.fullmatch(text) else yaml.safe_load(text)
        return absolute(expand_config(catalog, value) if isinstance(value, dict) else value, command)

    quiet_libraries()
    set_loader("omegaconf+", load, (yaml.YAMLError,))
    try:
        if {"-h", "--help"} & set(arguments):
            for kind in TOP_LEVEL.keys() & PLACES.keys():  # imported, they are listed as known subclasses
                for name in catalog.names(kind):
                    catalog.resolve(kind, name)
        CLI(
            AlignModule,
            AlignData,
            catalog=catalog,
            command=command,
            args=[
                command,
                *(absolute(argument, command) for argument in expand_arguments(catalog, arguments)),
            ],
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            trainer_defaults={
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
            },
        )
    except SIGTERMException:
        return 143
    except (CatalogError, UsageError, ValueError, OmegaConfBaseException) as error:
        if debug:
            raise
        return fail(words(error, command))
    return 0


def words(error: Exception, command: str) -> str:
    """The message of an error, without the parser's nesting and blank lines."""
    text = str(error).replace(f"{command}.", "")
    lines = [re.sub(r"\s+", " ", line).strip(" -") for line in text.splitlines()]
    kept = [line[:400] for line in lines if line]
    return "\n".join(kept[:3] + kept[3:][-1:])


def quiet_libraries() -> None:
    """Silences advice and notices of libraries that a user of this command can do nothing about."""
    transformers_logging.disable_progress_bar()
    noise = re.compile(
        "💡|litlogger|GPU available|TPU available|HPU available|Seed set|`Trainer.fit` stopped"
    )
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not noise.search(record.getMessage()))
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    pl.seed_everything(0, verbose=False)
