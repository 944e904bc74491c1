"""Logs that can no longer be written do not end the run that they are of."""

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

WRITING = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")
_ended: "weakref.WeakSet[Logger]" = weakref.WeakSet()


def endure(logger: Logger) -> None:
    """Lets a logger's errors of the disk end its log, and not training."""
    for name in WRITING:
        if callable(method := getattr(logger, name, None)):
            setattr(logger, name, functools.partial(attempt, logger, method))


def attempt(logger: Logger, write: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Writes to a log, unless that failed before; says so when it fails."""
    if logger in _ended:
        return
    try:
        write(*arguments, **options)
    except Exception as error:
        reasons = [reason for reason in _chain(error) if isinstance(reason, OSError)]
        if not reasons:
            raise
        _ended.add(logger)
        reason = reasons[0].strerror or reasons[0]
        rank_zero_warn(
            f"{type(logger).__name__} cannot write to {logger.save_dir}: {reason}; "
            "the run goes on, and nothing more is logged there"
        )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it followed from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
