"""Models that are evaluated: the base, a run, its checkpoints, a folder or hub id.

Suffixes: U people of an audience; L tokens; D width.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from alignkit.building import build
from alignkit.catalog import Catalog
from alignkit.checkpoints import SUFFIX, Saved, find, is_there, kept, saved
from alignkit.components import Backbone
from alignkit.evaluation.contents import Evaluated
from alignkit.evaluation.seen import rewards_seen
from alignkit.generate import CONFIG, Run, aligned, config_of, opened
from alignkit.mistakes import UsageError, cause
from alignkit.naming import expand, inline

BASE = "base"
_NAMED = re.compile(r"(?P<name>[^=@{}/\\]+)=(?P<source>.+)", re.S)


class Model(NamedTuple):
    """A model that is evaluated.

    Args:
        about: what the report says of it.
        backbone: what draws.
        load: gives its network.
        tokens_ULD: of the audience that it draws for; prompt number p is drawn for person p modulo U.
    """

    about: Evaluated
    backbone: Backbone
    load: Callable[[], nn.Module]
    tokens_ULD: Tensor | None = None


class Finder:
    """Finds models by what the command line says of them.

    Args:
        catalog: what is installed.
        config: of the first run, or of ``--config``: what the base is.
        checkpoints: whether a run stands for all of its checkpoints.
    """

    def __init__(self, catalog: Catalog, config: Mapping[str, Any], *, checkpoints: bool = False) -> None:
        self._catalog, self._config, self._checkpoints = catalog, config, checkpoints

    def find(self, given: Sequence[str]) -> list[Model]:
        """All models, in the order given.

        Raises:
            ValueError: there is no such model, or two have one name.
        """
        found = [model for said in given for model in self._one(said)]
        names = [model.about.name for model in found]
        if again := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"--model: {again[0]!r} names two models; name one of them otherwise: --model NAME={again[0]}"
            )
        return found

    def _one(self, said: str) -> list[Model]:
        name, source = split(said)
        if source == BASE:
            return [self._base(name or BASE)]
        if source.startswith("{"):
            settings = expand(self._catalog, "backbone", inline("model", source))
            backbone = _built(settings, f"--model {said}")
            return [plain(name or type(backbone).__name__, source, backbone)]
        folder, checkpoint = at(source)
        if (folder / CONFIG).is_file():
            return self._run(name, folder, checkpoint)
        if folder.suffix == SUFFIX and is_there(folder):
            raise ValueError(
                f"--model {source}: is a checkpoint; name it by its run, as in RUN@{folder.stem}"
            )
        return [plain(name or folder.name, source, self._loaded(source))]

    def _base(self, name: str) -> Model:
        if not self._config.get("backbone"):
            raise ValueError("--model base: whose? Give a run as well, or --config FILE")
        return plain(name, BASE, _built(self._config["backbone"], f"--model {BASE}"))

    def _run(self, name: str, folder: Path, checkpoint: str | None) -> list[Model]:
        run = opened(folder)
        config = config_of(folder)
        models = self._of_run(run, name, checkpoint)
        seen = rewards_seen(config, self._catalog.names("reward"))
        return [model._replace(about=model.about._replace(trained_on=seen)) for model in models]

    def _of_run(self, run: Run, name: str, checkpoint: str | None) -> list[Model]:
        folder = run.folder
        if checkpoint is not None:
            found = saved(find(folder, checkpoint), f"--model {folder}@{checkpoint}")
            return _audiences(run, name or f"{folder.resolve().name}@{checkpoint}", str(found.path), found)
        name = name or folder.resolve().name
        if not self._checkpoints:
            return _audiences(run, name, str(folder), None)
        series = [saved(path, f"--checkpoints {folder}") for path in kept(folder)]
        if not series:
            raise ValueError(f"--checkpoints: {folder} has none; leave the option out")
        ordered = sorted(series, key=lambda found: (found.step, found.path.name))
        return [
            _of_series(model, name, found.step)
            for found in ordered
            for model in _audiences(run, f"{name}@{found.path.stem}", str(found.path), found)
        ]

    def _loaded(self, path: str) -> Backbone:
        """The backbone that takes a folder or hub id, the config's own first."""
        own = str((self._config.get("backbone") or {}).get("class_path", ""))
        others = [expand(self._catalog, "backbone", name) for name in self._catalog.names("backbone")]
        kinds = sorted({str(settings["class_path"]) for settings in others}, key=lambda kind: kind != own)
        refusals = []
        for kind in kinds:
            settings = {"class_path": kind, "init_args": {"path": path}}
            try:
                return _built(settings, f"--model {path}")
            except (ValueError, UsageError) as error:  # it is another one's
                refusals.append(str(cause(error)).splitlines()[0])
        reason = f"\n{refusals[0]}" if refusals else ""
        raise ValueError(
            f"--model {path}: no run (it has no {CONFIG}), and no pipeline that a backbone takes; give "
            f"base, a run's folder, RUN@CHECKPOINT, a pipeline's folder or a hub id{reason}"
        )


def plain(name: str, source: str, backbone: Backbone) -> Model:
    """A model as it comes, without adapters of a training."""
    backbone.lora = None  # those of a base do nothing, and are drawn anew in every process
    return Model(Evaluated(name, source), backbone, lambda: backbone.build_policy().eval())


def split(said: str) -> tuple[str, str]:
    """The name that was given to a model, if any, and where it comes from.

    Example:
        >>> split("mine=runs/demo"), split("runs/demo@epoch=0-step=120"), split("base")
        (('mine', 'runs/demo'), ('', 'runs/demo@epoch=0-step=120'), ('', 'base'))
    """
    match = _NAMED.fullmatch(said)
    return (match["name"], match["source"]) if match else ("", said)


def at(source: str) -> tuple[Path, str | None]:
    """The folder, and the checkpoint behind an @."""
    folder, mark, checkpoint = source.partition("@")
    if mark and (Path(folder) / CONFIG).is_file():
        return Path(folder), checkpoint
    return Path(source), None


def first_run(given: Sequence[str]) -> Path | None:
    """The folder of the first run among models."""
    folders = [at(split(said)[1])[0] for said in given]
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


def _built(settings: Mapping[str, Any], name: str) -> Backbone:
    backbone: Backbone = build({"backbone": settings}, ("backbone",), name=name)["backbone"]
    return backbone


def _audiences(run: Run, name: str, source: str, found: Saved | None) -> list[Model]:
    """What a run trained: one model, or one for each audience of its conditioner."""

    def load() -> nn.Module:
        return _ended(run) if found is None else _at_checkpoint(run, found)

    about = Evaluated(name, source, step=None if found is None else found.step)
    if run.conditioner is None:
        return [Model(about, run.backbone, load)]
    load()  # who is known to it stands in what the run left
    told = run.conditioner.audiences()
    if not told:
        raise ValueError(
            f"--model {source}: its {type(run.conditioner).__name__} names no audiences to draw for; name "
            f"some in {run.folder / CONFIG}, under conditioner"
        )
    return [
        Model(about._replace(name=f"{name} for {audience}"), run.backbone, load, tokens_ULD)
        for audience, tokens_ULD in told.items()
    ]


def _ended(run: Run) -> nn.Module:
    """What a run ended with."""
    try:
        return aligned(run)
    except ValueError as error:
        if not kept(run.folder):
            raise
        raise ValueError(f"{error}\n--model {run.folder}@last evaluates how far it came") from error


def _at_checkpoint(run: Run, found: Saved) -> nn.Module:
    network = run.backbone.build_policy()
    if run.conditioner is not None:
        run.conditioner.attach(network)
        run.conditioner.load(network, run.folder)
    found.put_into(network, f"--model {run.folder}")
    return network.eval()


def _of_series(model: Model, series: str, step: int) -> Model:
    _, told, audience = model.about.name.partition(" for ")
    return model._replace(about=model.about._replace(series=f"{series}{told}{audience}", step=step))
