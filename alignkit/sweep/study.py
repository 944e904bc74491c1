"""The trials of a sweep, kept by optuna in a storage that any number of machines may work on."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from alignkit.mistakes import UsageError, shown
from alignkit.sweep.space import Axis, Choices, Values, crossed

GRID, RANDOM, TPE = "grid", "random", "tpe"
SAMPLERS = (GRID, RANDOM, TPE)
# of TPE, which learns from the others: so many trials are drawn at random first
DRAWN_FIRST = 10
# trials that must have been validated as often before one is ended for being worse than their median
BEFORE_PRUNING = 3
JOURNAL = "journal:"
DONE, PRUNED, FAILED, RUNNING, WAITING = "done", "pruned", "failed", "running", "waiting"
# of a study: what it is of; of a trial: its values as they are written, its place in the plan unless it was
# added later, and what came of it
OF, WRITTEN, PLANNED, TOLD = "alignkit", "values", "planned", "told"


class Row(NamedTuple):
    """A trial, as it stands.

    Args:
        number: from 0.
        values: as they are written; empty while nobody has chosen them.
        state: "done", "pruned", "failed", "running" or "waiting".
        metric: over its runs; None unless it is done.
        seconds: that its runs took.
        parts: the metric of each run.
        error: why it failed, or when it was pruned.
    """

    number: int
    values: Values
    state: str
    metric: float | None = None
    seconds: float = 0.0
    parts: tuple[float, ...] = ()
    error: str = ""


def drawn(axes: Sequence[Axis], sampler: str, count: int | None, seed: int) -> list[dict[str, str]]:
    """The trials that are known before any has run.

    Args:
        axes: what is varied.
        sampler: "grid", "random" or "tpe".
        count: of trials; None for all of a grid.
        seed: of random draws; the first ones are the same whatever the count.
    """
    choices = [axis for axis in axes if isinstance(axis, Choices)]
    if sampler == GRID:
        return list(crossed(choices))[:count]
    assert count is not None
    optuna = library()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    some = range(count if sampler == RANDOM else min(count, DRAWN_FIRST))
    return [suggested(study.ask(), axes, optuna) for _ in some]


def suggested(trial: Any, axes: Sequence[Axis], optuna: Any) -> dict[str, str]:
    """What optuna suggests for a trial, as it is written."""
    values = {}
    for axis in axes:
        if isinstance(axis, Choices):
            values[axis.key] = str(trial.suggest_categorical(axis.key, axis.values))
        elif axis.whole:
            found = trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.log)
            values[axis.key] = axis.written(found)
        else:
            values[axis.key] = axis.written(trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log))
    return values


class Study:
    """The trials of a sweep. A trial belongs to who holds its lock; see ``alignkit.sweep.command``.

    Args:
        storage: a URL as SQLAlchemy has them, or journal:FILE.
        name: of the study in it.
        of: what it is of; another call of the sweep must be of the same.
        axes: what is varied.
        sampler: "grid", "random" or "tpe".
        seed: of TPE's choices.
        higher: whether more of the metric is better.

    Raises:
        UsageError: the storage cannot be used, or the study in it is of something else.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        of: Mapping[str, str],
        *,
        axes: Sequence[Axis],
        sampler: str,
        seed: int,
        higher: bool,
    ) -> None:
        self._optuna = library()
        self._axes, self._sampler, self._seed = axes, sampler, seed
        with _storage_errors(storage):
            self._study = self._optuna.create_study(
                storage=self._opened(storage),
                study_name=name,
                direction="maximize" if higher else "minimize",
                pruner=self._optuna.pruners.MedianPruner(BEFORE_PRUNING, n_min_trials=BEFORE_PRUNING),
                load_if_exists=True,
            )
            self._check(dict(of), name)

    def _opened(self, storage: str) -> Any:
        if storage.startswith(JOURNAL):
            journal = self._optuna.storages.journal
            backend = journal.JournalFileBackend(storage.removeprefix(JOURNAL))
            return self._optuna.storages.JournalStorage(backend)
        waiting = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
        return self._optuna.storages.RDBStorage(storage, engine_kwargs=waiting)

    def _check(self, of: dict[str, str], name: str) -> None:
        known = self._study.user_attrs.get(OF)
        if known is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr(OF, of)
            return
        if known == of:
            return
        if known is None:
            raise UsageError(f"the study {name!r} is none of alignkit sweep; give another --study")
        told = [
            f"  {key}: {known.get(key)} -> {value}" for key, value in of.items() if known.get(key) != value
        ]
        raise UsageError(
            f"the study {name!r} is of another sweep:\n"
            + "\n".join(told[:2] + ["  ..."] * (len(told) > 2))
            + "\nCall it as it was begun, or give another --out, or another --study"
        )

    def plan(self, trials: Sequence[Values], count: int) -> None:
        """Adds the trials that are not there yet; values of those beyond the given ones are chosen later."""
        there = sum(PLANNED in trial.user_attrs for trial in self._study.get_trials(deepcopy=False))
        for number in range(there, count):
            self._enqueue(trials[number] if number < len(trials) else {}, {PLANNED: number})

    def retry(self) -> None:
        """Adds every failed trial once more, unless it has been."""
        rows = self.rows()
        for row in rows:
            again = any(other.number > row.number and other.values == row.values for other in rows)
            if row.state == FAILED and row.values and not again:
                self._enqueue(row.values, {})

    def _enqueue(self, values: Values, told: Mapping[str, int]) -> None:
        known = {axis.key: _as_stored(axis, values) for axis in self._axes if values}
        self._study.enqueue_trial(known, user_attrs={WRITTEN: dict(values), **told})

    def running(self) -> list[int]:
        """Numbers of trials that some process has begun, alive or not."""
        return [row.number for row in self.rows() if row.state == RUNNING]

    def resumed(self, number: int) -> "Trial":
        """A trial that was begun."""
        found = self._study.get_trials(deepcopy=False)[number]
        return self._begun(self._optuna.trial.Trial(self._study, found._trial_id))

    def begun(self) -> "Trial | None":
        """The next trial that waits; None if none does."""
        state = self._optuna.trial.TrialState
        if not self._study.get_trials(deepcopy=False, states=(state.WAITING,)):
            return None
        trial = self._study.ask()
        if WRITTEN in trial.user_attrs:
            return self._begun(trial)
        self._study.tell(trial, state=state.FAIL)  # the last was taken meanwhile, and this one never planned
        return None

    def _begun(self, trial: Any) -> "Trial":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            # of each trial its own: what is chosen does not depend on who has chosen before
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=self._seed + trial.number, n_startup_trials=DRAWN_FIRST, constant_liar=True
            )
        values = suggested(trial, self._axes, self._optuna)
        trial.set_user_attr(WRITTEN, values)
        return Trial(self._study, trial, values, self._optuna)

    def rows(self) -> list[Row]:
        """Every trial, as it stands."""
        rows = []
        for trial in self._study.get_trials(deepcopy=False):
            if WRITTEN not in trial.user_attrs:
                continue
            told = trial.user_attrs.get(TOLD) or {}
            state = _STATES[trial.state.name]
            rows.append(
                Row(
                    trial.number,
                    trial.user_attrs[WRITTEN],
                    state,
                    trial.value if state == DONE else None,
                    told.get("seconds", 0.0),
                    tuple(told.get("parts", ())),
                    told.get("error", ""),
                )
            )
        return rows


class Trial:
    """A trial at work.

    Args:
        study: of optuna.
        trial: of optuna.
        values: as they are written.
        optuna: the library.
    """

    def __init__(self, study: Any, trial: Any, values: Values, optuna: Any) -> None:
        self.number: int = trial.number
        self.values = values
        self._study, self._trial, self._states = study, trial, optuna.trial.TrialState
        self._reported = set(self._study.get_trials(deepcopy=False)[self.number].intermediate_values)

    @property
    def seconds(self) -> float:
        """That it took before it was interrupted."""
        return float(self._trial.user_attrs.get(TOLD, {}).get("seconds", 0.0))

    def report(self, number: int, value: float) -> bool:
        """Notes what its validation of that number found; whether that is news."""
        if number in self._reported:
            return False
        self._reported.add(number)
        self._trial.report(value, number)
        return True

    def is_worse(self) -> bool:
        """Whether the others were better, by their median, when they had been validated as often."""
        return bool(self._trial.should_prune())

    def interrupted(self, seconds: float) -> None:
        """Notes how long it took so far; it is begun, and nobody's."""
        self._tell(None, seconds)

    def done(self, parts: Sequence[float], seconds: float) -> None:
        """Notes what it reached, as the mean over its runs."""
        self._tell(self._states.COMPLETE, seconds, parts=list(parts), value=sum(parts) / len(parts))

    def pruned(self, seconds: float) -> str:
        """Notes that it was ended for being worse; says so."""
        last = max(self._reported)
        value = self._study.get_trials(deepcopy=False)[self.number].intermediate_values[last]
        told = f"worse than the median at validation {last}: {value:.4g}"
        self._tell(self._states.PRUNED, seconds, error=told)
        return f"is ended: {told}"

    def failed(self, error: str, seconds: float) -> None:
        """Notes why it failed."""
        self._tell(self._states.FAIL, seconds, error=error)

    def _tell(self, state: Any, seconds: float, value: float | None = None, **told: Any) -> None:
        self._trial.set_user_attr(TOLD, {"seconds": round(seconds, 1), **told})
        if state is not None:
            self._study.tell(self._trial, value, state=state)


def library() -> Any:
    """Optuna, quiet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(f"alignkit sweep needs {error.name}: pip install 'alignkit[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


_STATES = {"COMPLETE": DONE, "PRUNED": PRUNED, "FAIL": FAILED, "RUNNING": RUNNING, "WAITING": WAITING}


def _as_stored(axis: Axis, values: Values) -> Any:
    value = values[axis.key]
    return value if isinstance(axis, Choices) else int(value) if axis.whole else float(value)


@contextmanager
def _storage_errors(storage: str) -> Iterator[None]:
    """Tells in words whatever a database, its driver or optuna refuses."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        url = re.sub(r"//[^/@]*@", "//...@", storage)
        said = " ".join(str(error).split())[:200].replace(storage, url)
        raise UsageError(f"--storage {shown(url)}: cannot be used: {type(error).__name__}: {said}") from error
