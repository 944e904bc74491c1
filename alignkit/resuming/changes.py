"""In what two runs differ that should be the same: configs, data, reference."""

import pydoc
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch import callbacks

from alignkit.mistakes import shown

# keys that do not alter what is trained, or are compared by what comes of them: batch_size, devices and
# accumulate_grad_batches by what they make of the pairs of a step
FREE = (
    "config",
    "run",
    "vars",
    "ckpt_path",
    "weights_only",
    "evaluation",
    "samples",
    "data.num_workers",
    "data.batch_size",
    "data.validation",
    "data.max_unreadable",
    *(
        f"trainer.{name}"
        for name in (
            "accelerator",
            "strategy",
            "devices",
            "num_nodes",
            "accumulate_grad_batches",
            "logger",
            "max_epochs",
            "min_epochs",
            "max_steps",
            "min_steps",
            "max_time",
            "limit_val_batches",
            "limit_test_batches",
            "limit_predict_batches",
            "val_check_interval",
            "check_val_every_n_epoch",
            "num_sanity_val_steps",
            "log_every_n_steps",
            "enable_checkpointing",
            "enable_progress_bar",
            "enable_model_summary",
            "enable_autolog_hparams",
            "inference_mode",
            "use_distributed_sampler",
            "profiler",
            "detect_anomaly",
            "default_root_dir",
            "model_registry",
        )
    ),
    # set from other keys
    "model.optimizer",
    "model.seed",
    "data.seed",
)
CALLBACKS = "callbacks"
# of a message
LINES, WIDTH = 3, 280
LENGTH = 12  # of a hash, in messages


class Onlooker(pl.Callback):
    """A callback that alters nothing of what is trained: a run may go on with it or without it.

    Any other is a part of what a run is.
    """


LOOKING = (
    Onlooker,
    callbacks.Checkpoint,
    callbacks.DeviceStatsMonitor,
    callbacks.EarlyStopping,
    callbacks.LearningRateMonitor,
    callbacks.ModelSummary,
    callbacks.ProgressBar,
    callbacks.ThroughputMonitor,
    callbacks.Timer,
)


class Change(NamedTuple):
    """One thing that is another than it was.

    Args:
        key: names it, with dots.
        before: what it was.
        now: what it is.
    """

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"

    def is_allowed(self, allowed: Collection[str]) -> bool:
        """Whether it, or what it is a part of, is among those allowed."""
        return any(f"{self.key}.".startswith(f"{key}.") for key in allowed)


def counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a whole config may alter what is trained, as plain values."""
    kept: dict[str, Any] = _plain(config, "")
    trainer = kept.get("trainer")
    if isinstance(trainer, dict):
        named = trainer.pop(CALLBACKS, None) or []
        trainer[CALLBACKS] = {}
        for spec in named if isinstance(named, list) else [named]:
            path = spec if isinstance(spec, str) else spec["class_path"]
            found = pydoc.locate(path)
            if not (isinstance(found, type) and issubclass(found, LOOKING)):
                name, same = path.rpartition(".")[2], 1
                while (key := name if same == 1 else f"{name}-{same}") in trainer[CALLBACKS]:
                    same += 1
                trainer[CALLBACKS][key] = {"class_path": path} if isinstance(spec, str) else spec
    return kept


def differences(before: Any, now: Any, key: str = "") -> Iterator[Change]:
    """Where two nested values differ; of components of another class, only that.

    Args:
        before: one of them.
        now: the other.
        key: what both are, with dots.
    """
    if before == now or key in FREE:
        return
    ours, theirs = _mapping(now), _mapping(before)
    if ours is None or theirs is None or ours.get("class_path") != theirs.get("class_path"):
        yield Change(key, before, now)
        return
    for name in dict.fromkeys([*theirs, *ours]):
        inner = key if name == "init_args" else f"{key}.{name}".lstrip(".")
        yield from differences(theirs.get(name), ours.get(name), inner)


def refuse(changes: Sequence[Change], allowed: Collection[str], checkpoint: str) -> None:
    """Refuses to go on as another run.

    Args:
        changes: in what it is another.
        allowed: keys that may differ.
        checkpoint: what messages call it.

    Raises:
        ValueError: something else differs.
    """
    left = [change for change in changes if not change.is_allowed(allowed)]
    if not left:
        return
    lines = [f"  {change}" for change in left]
    if len(lines) > LINES:
        told = "; ".join(map(str, left))
        lines = textwrap.wrap(
            told, WIDTH, initial_indent="  ", subsequent_indent="  ", max_lines=LINES, placeholder=" ..."
        )
    keys = " ".join(f"--allow-change {change.key}" for change in left)
    raise ValueError(
        "\n".join([f"{checkpoint} is of a run that differs from this one:", *lines])
        + f"\nResume with what it was started with; or, to go on as another: {keys}"
    )


def _plain(value: Any, key: str) -> Any:
    """A value of a config in lists, dicts, numbers and texts, without the keys that are free."""
    if isinstance(value, Mapping):
        inner = {str(name): f"{key}.{name}".lstrip(".") if name != "init_args" else key for name in value}
        return {name: _plain(value[name], place) for name, place in inner.items() if place not in FREE}
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _shown(value: Any) -> str:
    path = value.get("class_path") if isinstance(value, Mapping) else None
    if path is not None:
        return str(path).rpartition(".")[2]
    text = shown(value)
    is_hash = isinstance(value, str) and len(value) >= 32 and not set(value) - set("0123456789abcdef")
    return value[:LENGTH] if is_hash else "none" if value is None else text
