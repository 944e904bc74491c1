"""`alignkit fit` and `alignkit validate`: LightningCLI over the catalog's components."""

import logging
import os
import re
import shutil
import warnings
from argparse import SUPPRESS
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace, set_loader
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    OptimizerCallable,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from alignkit import checkpoints, components, logs, mistakes, resuming, rules, slurm, strategies
from alignkit.callbacks import Checkpoints, ProgressBar, SampleGrid, Throughput
from alignkit.catalog import Catalog
from alignkit.commandline import refusals
from alignkit.data import AlignData
from alignkit.declared import declared
from alignkit.devices import keep_freed_memory
from alignkit.evaluation import Evaluation
from alignkit.guards import Guards
from alignkit.imports import only_trusted
from alignkit.mistakes import Given, UsageError
from alignkit.module import AlignModule
from alignkit.naming import OPTIMIZERS, PLACES, absolute, expand_arguments, expand_config
from alignkit.signals import Stopped, current
from alignkit.stopping import Stopping
from alignkit.types import Reads
from alignkit.watch import Watch, watched

TOP_LEVEL = {
    "objective": components.Objective,
    "weighting": components.Weighting,
    "sampler": components.Sampler,
    "conditioner": components.Conditioner,
    "backbone": components.Backbone,
    "reference": components.Reference,
}
RUN_VARIABLE = "ALIGNKIT_RUN"
ALLOW = "--allow-change"
# what a checkpoint may be called in place of its path
WORDS = ("best", "last", "hpc")
_NUMBER = re.compile(r"\s*[-+]?\d+(\.\d*)?[eE][-+]?\d+\s*")


class RefusedError(Exception):
    """What the parser says of a mistake, in its own words.

    Args:
        message: those words.
        known: keys that the command takes.
    """

    def __init__(self, message: str, known: list[str]) -> None:
        super().__init__(message)
        self.known = known


class Parser(LightningArgumentParser):
    """Says what is wrong in a few lines, without the usage of five hundred options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a class: let the outer one speak, it knows the key
            super().error(message, ex)
        raise RefusedError(str(message), self._known()) from ex

    def _known(self) -> list[str]:
        parsers = [self, *(getattr(self._subcommands_action, "choices", None) or {}).values()]
        return [action.dest for parser in parsers for action in parser._actions]


class Start(pl.Callback):
    """Knows how far a run has come, and takes back what one left that failed before its first batch."""

    def __init__(self) -> None:
        self.in_loop = self.stepped = False
        self._fresh: list[Path] = []

    def at(self, folder: Path) -> None:
        """Makes the run's folder, and notes what was made: only that may be taken back."""
        fresh = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # a run that is resumed, or another process of this one
            return
        self._fresh = fresh

    def on_train_start(self, *_: object) -> None:
        self.in_loop = True

    def on_validation_start(self, *_: object) -> None:
        self.in_loop = True

    def on_train_batch_end(self, *_: object) -> None:
        self.stepped = True

    def on_validation_batch_end(self, *_: object) -> None:
        self.stepped = True

    def undo(self) -> None:
        """Removes the run's folder, and its parents as far as they were made for it and hold nothing else."""
        if self.stepped or not _is_first() or not self._fresh:
            return
        shutil.rmtree(self._fresh[0], ignore_errors=True)
        for parent in self._fresh[1:]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


class SavedConfig(SaveConfigCallback):
    """Writes ``RUN/config.yaml`` once nothing refuses the run any more: until then it is an earlier one's."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().setup(trainer, pl_module, "validate")


class CLI(LightningCLI):
    """LightningCLI with the catalog's components as top-level keys."""

    def __init__(
        self, *args: Any, command: str, start: Start, only_read: bool = False, **options: Any
    ) -> None:
        self._command, self._start, self._only_read = command, start, only_read
        super().__init__(*args, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # only the one that was asked for: building a parser takes a second
        return {
            name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self._command
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--vars", type=dict, default={}, help="free values, used as ${vars.NAME}")
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="folder that the run writes to; runs/<config> without it",
        )
        if self._command == "fit":
            parser.add_argument(
                ALLOW,
                action="append",
                type=str,
                default=SUPPRESS,  # no key of a config that is printed
                metavar="KEY",
                help="with --ckpt_path: a key that may differ from the run's so far, or what it is a part "
                "of; also data and reference. Give it once for each. Checkpoints and summary.json tell of it",
            )
        for name, base in TOP_LEVEL.items():
            required = name in ("objective", "sampler", "backbone")
            parser.add_subclass_arguments(base, name, required=required)
            parser.link_arguments(name, f"model.{name}", apply_on="instantiate")
        parser.add_argument("--optimizer", type=OptimizerCallable, required=True, help="such as AdamW")
        parser.link_arguments("optimizer", "model.optimizer")
        parser.add_lightning_class_args(Evaluation, "evaluation")
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(Guards, "guards")
        parser.add_lightning_class_args(Watch, "watch")
        parser.link_arguments(
            ("objective", "sampler"), "data.reads", compute_fn=_reads, apply_on="instantiate"
        )
        parser.link_arguments(
            "objective", "data.validation_reads", compute_fn=_objective_reads, apply_on="instantiate"
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # sys.argv stays as it is: DDP's launcher runs it again
        with only_trusted():
            self.config = parser.parse_args(args)
        # it holds for this start: a config that is saved with it would allow the same ever after
        self._allowed: list[str] = self.config[self._command].pop("allow_change", None) or []

    def _parse_ckpt_path(self) -> None:
        """Takes no settings from a checkpoint: what runs is what the config says."""

    def before_instantiate_classes(self) -> None:
        """Refuses what nobody else would, before anything is loaded or written."""
        config = self.config[self._command]
        if (accumulated := config.trainer.accumulate_grad_batches) < 1:
            raise UsageError(f"trainer.accumulate_grad_batches must be at least 1, got {accumulated}")
        self._check_checkpoint(config.get("ckpt_path"))
        rules.check(declared(config.as_dict()))
        self._check_changes(config)

    def _check_checkpoint(self, path: str | None) -> None:
        """Refuses a checkpoint that is not there.

        Raises:
            UsageError: it is not.
        """
        if path in WORDS and self._command != "fit":
            raise UsageError(
                f"--ckpt_path {path}: of which run? Give the file, such as RUN/{checkpoints.LAST}"
            )
        if path and path not in WORDS:
            with refusals():
                checkpoints.check_present(Path(path), "--ckpt_path")

    def _check_changes(self, config: Namespace) -> None:
        """Refuses a checkpoint of another config before anything is loaded; what it holds is read again then.

        Raises:
            UsageError: a key differs, and is not allowed to.
        """
        path = config.get("ckpt_path")
        if path == "last":
            path = Path(run_folder(config, self._command), checkpoints.LAST)
        if self._command == "fit" and path and (before := checkpoints.told(Path(path), "config")) is not None:
            changes = resuming.differences(before, resuming.counted(config.as_dict()))
            with refusals():
                resuming.refuse(list(changes), self._allowed, str(path))

    def instantiate_classes(self) -> None:
        if not self._only_read:
            with only_trusted():
                super().instantiate_classes()
            config = self.config[self._command].as_dict()
            self.model.resuming = resuming.Resuming(config, self._allowed)

    def text(self) -> str:
        """The whole config, as ``--print_config`` shows it."""
        told: str = self._parser(self._command).dump(self.config[self._command])
        return told

    def _run_subcommand(self, subcommand: str) -> None:
        if self._only_read:
            return
        given, run = self.config_init[subcommand], Path(self.trainer.default_root_dir)
        is_requeued = subcommand == "fit" and slurm.interrupted([run]) is not None
        if (is_requeued or given.get("ckpt_path") == "last") and checkpoints.kept(run):
            # the Trainer would begin anew where the link is broken
            given.ckpt_path = str(run / checkpoints.LAST)
        if subcommand == "fit" and _is_first():
            slurm.begin(run)
        with watched(self.trainer):
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """Gives the run its folder and its callbacks, without pinning them in the config that is saved."""
        config = self.config[self._command]
        folder = run_folder(config, self._command)
        self._start.at(Path(folder))
        options["default_root_dir"] = folder
        if config.trainer.logger in (None, True):
            options["logger"] = TensorBoardLogger(folder, name="", version="")
        callbacks: list[pl.Callback] = [self._start, Throughput()]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if config.trainer.enable_checkpointing is not False:
            callbacks.append(Checkpoints())
        self.trainer_defaults["callbacks"] = callbacks
        options["plugins"] = [*self._plugins(), checkpoints.CheckpointFiles()]
        if (sharded := strategies.strategy(config.trainer.strategy)) is not None:
            options["strategy"] = sharded
        trainer: pl.Trainer = super().instantiate_trainer(**options)
        for logger in trainer.loggers:
            logs.endure(logger)
        Stopping().attach(trainer)
        if config.trainer.enable_checkpointing is not False:
            Checkpoints.check(trainer)
        return trainer

    def _plugins(self) -> list[Any]:
        """The user's own."""
        given = self._get(self.config_init, "trainer").plugins
        return given if isinstance(given, list) else [given] if given else []

    def after_fit(self) -> None:
        """Validates what the run ended with, and so evaluates it."""
        self.trainer.validate(self.model, self.datamodule, verbose=False)
        if _is_first():
            slurm.end(Path(self.trainer.default_root_dir))


def _reads(objective: components.Objective, sampler: components.Sampler) -> Reads:
    return sampler.reads or objective.reads


def _objective_reads(objective: components.Objective) -> Reads:
    return objective.reads


def _is_first() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def run_folder(config: Namespace, command: str) -> str:
    """Names a folder that no other run has written to, the same in every process of a run.

    Only a run that goes on writes to a folder that has something: ``fit`` with a checkpoint to the one that
    it is given, and a job that was requeued to its own.
    """
    if RUN_VARIABLE not in os.environ:
        paths = [Path(str(path)) for path in config.get("config") or []]
        # a run's own config.yaml is called as its folder is
        names = [path.parent.name if path.name == "config.yaml" else path.stem for path in paths]
        name = names[-1] if names else config.objective.class_path.split(".")[-1]
        wanted = Path(config.run or Path("runs", name if command == "fit" else f"{name}-{command}"))
        folder, taken = wanted, []
        while folder.exists() and any(folder.iterdir()):
            taken.append(folder)
            folder = wanted.with_name(f"{wanted.name}-{len(taken) + 1}")
        if command == "fit":
            folder = slurm.interrupted(taken) or (wanted if config.get("ckpt_path") else folder)
        os.environ[RUN_VARIABLE] = str(folder)
    return os.environ[RUN_VARIABLE]


def fit(catalog: Catalog, arguments: list[str]) -> int:
    """Trains; returns the exit code.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """
    return _run(catalog, "fit", arguments)


def read_config(catalog: Catalog, arguments: list[str]) -> dict[str, Any]:
    """The whole config of ``fit`` with these arguments, defaults and overrides included; builds nothing.

    Raises:
        UsageError: what ``fit`` refuses before it loads anything.
    """
    read = run_cli(catalog, "fit", arguments, only_read=True)
    config: dict[str, Any] = read.config["fit"].as_dict()
    return config


def validate(catalog: Catalog, arguments: list[str]) -> int:
    """Scores a checkpoint; otherwise as ``fit``."""
    return _run(catalog, "validate", arguments)


def _run(catalog: Catalog, command: str, arguments: list[str]) -> int:
    try:
        run_cli(catalog, command, arguments)
    except SIGTERMException as error:  # this is how the Trainer takes whatever Stopping tells it
        handler = current()
        if handler is None or handler.number is None:
            raise
        raise Stopped(handler.number, getattr(error, "__notes__", ())) from error
    return 0


def run_cli(catalog: Catalog, command: str, arguments: list[str], *, only_read: bool = False) -> CLI:
    """Runs a command of the Trainer, or only reads what it is told.

    Raises:
        UsageError: a user's mistake. Any other error keeps its traceback.
    """

    def load(text: str) -> Any:
        value = float(text) if _NUMBER.fullmatch(text) else mistakes.parsed(text)
        return absolute(expand_config(catalog, value) if isinstance(value, dict) else value, command)

    quiet_libraries()
    keep_freed_memory()
    set_loader("omegaconf+", load, (yaml.YAMLError,))
    if {"-h", "--help"} & set(arguments):
        for kind in TOP_LEVEL.keys() & PLACES.keys():  # imported, they are listed as known subclasses
            for name in catalog.names(kind):
                catalog.resolve(kind, name)
    expanded, configs = expand_arguments(catalog, arguments)
    given, start = Given(arguments, configs), Start()
    try:
        return CLI(
            AlignModule,
            AlignData,
            command=command,
            start=start,
            only_read=only_read,
            args=[command, *(absolute(argument, command) for argument in expanded)],
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_callback=SavedConfig,
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
    except RefusedError as error:
        installed = {place: catalog.names(kind) for place, kind in PLACES.items()} | {"optimizer": OPTIMIZERS}
        raise UsageError(mistakes.explained(str(error), command, given, error.known, installed)) from error
    except OmegaConfBaseException as error:
        raise UsageError(mistakes.interpolation(error, command, given)) from error
    except Stopped:
        if not start.in_loop:
            start.undo()
        raise
    except Exception as error:
        start.undo()
        root = mistakes.cause(error)
        packages = {"alignkit", *(item.target.partition(".")[0] for item in catalog.components.values())}
        if told := in_words(root, packages, start):
            raise UsageError(told) from error
        raise


def in_words(error: BaseException, packages: set[str], start: Start) -> str:
    """The message of a user's mistake; empty for any other error.

    Until the loop begins, a mistake is whatever anyone refuses; then, only what alignkit or a plugin does.
    """
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, MisconfigurationException):
        return f"trainer: {error}"
    if isinstance(error, ValueError | ImportError) and mistakes.is_refusal(error):
        module = mistakes.module(error)
        if module.partition(".")[0] in packages:
            return str(error)
        owner = "trainer" if module.startswith("lightning") else module
        return "" if start.in_loop else f"{owner}: {error}"
    return str(error) if isinstance(error, OSError) and not start.in_loop else ""


def quiet_libraries() -> None:
    """Silences advice and notices of libraries that a user of this command can do nothing about."""
    transformers_logging.disable_progress_bar()
    noise = re.compile(
        "💡|litlogger|GPU available|TPU available|HPU available|Seed set|`Trainer.fit` stopped"
        "|The following callbacks returned in `LightningModule.configure_callbacks`"
    )
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not noise.search(record.getMessage()))
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    # of compiled networks: what diffusers caches by arguments, and checks of versions
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`.*")
    # norms stay float32 in mixed precision
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # steps are counted over epochs
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # a run that resumes goes on in its folder, and one that validates has its own
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message="The dirpath has changed from .*")
    warnings.filterwarnings("ignore", message=r"Total length of `\w+` across ranks is zero.*")
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
