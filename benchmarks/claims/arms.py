"""What is trained, and what came of it. Shape suffixes: S training seeds; P prompts."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.configfiles import find_config

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SEEDS = (0, 1, 2, 3, 4)
# a run with this seed is judged on prompts that were trained on, and only chooses settings
TUNING_SEED = 100
UTILITY, MINORITY, FIDELITY, RECOGNITION = (
    "MajorityTaste",
    "MinorityTaste",
    "EmojiFidelity",
    "EmojiRecognition",
)
DIVERSITY, DISPLACEMENT = "diversity", "displacement"
BASE = "base"
STEPS = 150


class Arm(NamedTuple):
    """One way of training.

    Args:
        name: unique in the bench; names the files of its results.
        settings: what differs from the config, by dotted key, as the command line takes it.
        config: a file of this folder, or a packaged config.
        flip_rate: share of the training labels that are swapped; which ones depends on the run's seed.
        steps: optimizer steps at which the model is judged; training ends with the last.
    """

    name: str
    settings: Mapping[str, Any] = {}
    config: str = "base.yaml"
    flip_rate: float = 0.0
    steps: tuple[int, ...] = (STEPS,)

    def identity(self) -> dict[str, Any]:
        """What a result says of how it was made; results of another identity are refused."""
        return {
            "config": self.config,
            "config_sha256": hashlib.sha256(config_of(self).read_bytes()).hexdigest()[:16],
            "settings": dict(self.settings),
            "flip_rate": self.flip_rate,
            "steps": list(self.steps),
        }


class Outcome(NamedTuple):
    """One run's figures.

    Args:
        scores: by step and audience ("" without one), then by measure, one figure per prompt.
        seconds: of training, and of drawing and scoring, on one core.
    """

    scores: Mapping[tuple[int, str], Mapping[str, NDArray[np.float64]]]
    seconds: Mapping[str, float]


def config_of(arm: Arm) -> Path:
    """The file that an arm's settings go over."""
    own = HERE / arm.config
    return own if own.is_file() else find_config(arm.config)


def path_of(arm: Arm, seed: int) -> Path:
    """Where a run's figures are."""
    return RESULTS / f"{arm.name}-{seed}.json"


def outcome(arm: Arm, seed: int) -> Outcome | None:
    """Reads what a run left; None if it has not been run.

    Raises:
        ValueError: it was made with other settings.
    """
    path = path_of(arm, seed)
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(arm.identity()))
    if content["identity"] != wanted:
        raise ValueError(
            f"{path}: was made with {content['identity']}, but the arm is {wanted}: remove it to run it again"
        )
    scores = {
        (entry["step"], entry["audience"]): {name: np.array(row) for name, row in entry["scores"].items()}
        for entry in content["evaluations"]
    }
    return Outcome(scores, content["seconds"])


class Runs(NamedTuple):
    """All seeds of some arms, by name, with the base's figures of the same prompts and pictures' seeds."""

    outcomes: Mapping[str, Mapping[int, Outcome]]

    def table(
        self, name: str, measure: str, *, step: int | None = None, audience: str = ""
    ) -> NDArray[np.float64]:
        """A measure of an arm, (S, P), at its last step if none is given."""
        rows = []
        for _, found in sorted(self.outcomes[name].items()):
            last = max(at for at, whom in found.scores if whom == audience)
            rows.append(found.scores[last if step is None else step, audience][measure])
        return np.array(rows)

    def gain(
        self, name: str, measure: str = UTILITY, *, step: int | None = None, audience: str = ""
    ) -> NDArray[np.float64]:
        """A measure of an arm minus the base's, (S, P)."""
        return self.table(name, measure, step=step, audience=audience) - self.table(BASE, measure)

    def steps(self, name: str) -> list[int]:
        """Steps at which an arm was judged."""
        first = next(iter(self.outcomes[name].values()))
        return sorted({step for step, _ in first.scores})


BASE_ARM = Arm(BASE, steps=(0,))


def runs_of(arms: Iterable[Arm], seeds: Iterable[int] = SEEDS) -> Runs | None:
    """Reads all runs of some arms and of the base; None while one is missing."""
    found: dict[str, dict[int, Outcome]] = {}
    seeds = tuple(seeds)
    for arm in (BASE_ARM, *arms):
        for seed in seeds:
            one = outcome(arm, seed)
            if one is None:
                return None
            found.setdefault(arm.name, {})[seed] = one
    return Runs(found)
