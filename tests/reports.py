"""Reports made by hand: real emoji pictures as PNG files, and scores from a generator."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.evaluation.contents import Comparison, Evaluated, Report
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit_emoji.pictures import SETS, load_pictures

MEASURES = ("MajorityTaste", "MinorityTaste", "EmojiFidelity", "EmojiRecognition")
CATEGORIES = ("Animals & Nature", "Food & Drink")
MANIFEST: dict[str, Any] = {
    "command": "alignkit evaluate base dpo dmpo",
    "sampler": {"class": "DDIMScheduler", "steps": 20, "guidance": 7.5},
    "dtype": "float32",
    "seeds": [1000, 1001],
    "hashes": {"prompts": "7d865e959b2466918c9863afca942d0f", "base": "b1946ac92492d2347c6235b4d2611184"},
    "versions": {"alignkit": "0.1.0", "torch": "2.13.0"},
}
THREE = Evaluated("base", "emoji"), Evaluated("dpo", "runs/dpo"), Evaluated("dmpo", "runs/dmpo")
STEPS = (100, 200, 400)
SERIES = (
    Evaluated("base", "emoji"),
    *(Evaluated(f"dmpo at {step}", "runs/dmpo", "dmpo", step, ("MajorityTaste",)) for step in STEPS),
    Evaluated("inversion", "runs/inversion"),
)


def simulated(
    folder: Path,
    models: Sequence[Evaluated] = (
        Evaluated("base", "emoji"),
        Evaluated("dpo", "runs/dpo"),
        Evaluated("dmpo", "runs/dmpo"),
    ),
    *,
    prompts: Sequence[Prompt] | None = None,
    num_prompts: int = 6,
    num_seeds: int = 2,
    pictures: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Report:
    """Models are the better, the later they stand; by one reward all tie at the first seed of a prompt."""
    generator = np.random.default_rng(0)
    shipped = load_pictures()
    concepts = list(dict.fromkeys(shipped.concepts))
    chosen = [index * len(concepts) // num_prompts for index in range(num_prompts)]
    if prompts is None:
        prompts = [Prompt(concepts[index], CATEGORIES[row % 2]) for row, index in enumerate(chosen)]
    if pictures is None:
        pictures = {}
        for number, model in enumerate(models):
            paths = [
                [f"pictures/{number}/{p}_{s}.png" for s in range(num_seeds)] for p in range(len(prompts))
            ]
            pictures[model.name] = tuple(map(tuple, paths))
            for p, row in enumerate(paths):
                for s, path in enumerate(row):
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    png = shipped.png[chosen[p % num_prompts] * len(SETS) + (number + s) % len(SETS)]
                    (folder / path).write_bytes(png)
    shape = len(prompts), num_seeds
    common = {measure: generator.normal(size=shape) for measure in MEASURES}
    scores = {}
    for number, model in enumerate(models):
        rewards = {
            measure: value + 0.4 * number * generator.random(shape) for measure, value in common.items()
        }
        rewards["EmojiFidelity"][:, 0] = common["EmojiFidelity"][:, 0]
        feature_PSD = generator.normal(size=(*shape, 3))
        scores[model.name] = Scores(rewards, feature_PSD / np.linalg.norm(feature_PSD, axis=2, keepdims=True))
    results = Results(tuple(prompts), tuple(range(1000, 1000 + num_seeds)), scores)
    return Report(
        f"{', '.join(model.name for model in models[1:])} against {models[0].name}",
        (
            f"{models[-1].name} scores higher than {models[0].name} by 3 of 4 rewards.",
            "By EmojiFidelity no difference is left after correction.",
        ),
        tuple(models),
        tuple(_comparisons(results, models)),
        results,
        pictures,
        MANIFEST,
    )


def _comparisons(results: Results, models: Sequence[Evaluated]) -> list[Comparison]:
    categories = [None, *dict.fromkeys(prompt.category for prompt in results.prompts)]
    found = []
    for place, model in enumerate(models):
        for other in models[:place]:
            for category in categories:
                kept = np.array([category in (None, prompt.category) for prompt in results.prompts])
                found += [
                    _comparison(model.name, other.name, measure, category, own[kept], theirs[kept])
                    for measure, own in results.scores[model.name].reward_PS.items()
                    for theirs in [results.scores[other.name].reward_PS[measure]]
                ]
                found += _of_spread(model.name, other.name, category, int(kept.sum()), place)
    return found


def _comparison(
    model: str,
    against: str,
    measure: str,
    category: str | None,
    own: NDArray[np.float64],
    theirs: NDArray[np.float64],
) -> Comparison:
    difference = own - theirs
    p = 0.6 if measure == "EmojiFidelity" else 1e-7
    return Comparison(
        model,
        against,
        measure,
        category,
        len(own),
        mean=_interval(own),
        against_mean=_interval(theirs),
        difference=_interval(difference),
        median_difference=float(np.median(difference.mean(1))),
        wins=int((difference > 0).sum()),
        ties=int((difference == 0).sum()),
        losses=int((difference < 0).sum()),
        win_rate=_interval((difference > 0) + 0.5 * (difference == 0)),
        sign_p=p / 8,
        adjusted_p=p if category is None else None,
    )


def _of_spread(model: str, against: str, category: str | None, num: int, place: int) -> list[Comparison]:
    """Diversity falls and displacement rises, the later a model stands."""
    fell = -0.03 * place
    diversity = Comparison(
        model,
        against,
        "diversity",
        category,
        num,
        mean=Interval(0.42 + fell, 0.38 + fell, 0.47 + fell),
        against_mean=Interval(0.42, 0.38, 0.47),
        difference=Interval(fell, fell - 0.02, fell + 0.01),
        median_difference=fell,
        wins=1,
        ties=0,
        losses=num - 1,
        win_rate=Interval(1 / num, 0.0, 0.5),
        sign_p=0.04,
        adjusted_p=0.2 if category is None else None,
    )
    moved = Interval(0.1 * place, 0.08 * place, 0.13 * place)
    return [diversity, Comparison(model, against, "displacement", category, num, moved)]


def _interval(value_PS: NDArray[np.float64]) -> Interval:
    """About two standard errors."""
    value_P = value_PS.mean(1)
    error = 2 * float(value_P.std()) / len(value_P) ** 0.5
    mean = float(value_P.mean())
    return Interval(mean, mean - error, mean + error)
