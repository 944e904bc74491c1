"""Every model against every one before it, prompt by prompt.

Shape suffixes: P prompts; M figures of a prompt, one per seed or one in all; K figures of the same prompts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alignkit.evaluation.contents import Comparison, Evaluated
from alignkit.evaluation.results import Results
from alignkit.evaluation.statistics.bootstrap import intervals
from alignkit.evaluation.statistics.significance import holm, sign_test
from alignkit.evaluation.statistics.soundness import check
from alignkit.evaluation.statistics.spread import displacement, diversity, vendi
from alignkit.evaluation.statistics.win_rates import win_rates

DIVERSITY, VENDI, DISPLACEMENT = "diversity", "vendi", "displacement"


def comparisons(results: Results, models: Sequence[Evaluated]) -> tuple[Comparison, ...]:
    """Compares every model with every one before it, over all prompts and then within every category.

    By every reward; with features also by displacement from the first model, and with two seeds or more by
    the diversity and the Vendi score of the pictures of one prompt. Intervals are over prompts, since
    pictures of one prompt are not independent.

    ``sign_p`` asks whether more prompts gain than lose, by the mean over their pictures; prompts whose
    difference is exactly 0 are dropped. ``adjusted_p`` corrects it by Holm's method for all tests over all
    prompts together: every pair of models by every measure. Categories are for looking closer: they have
    ``sign_p``, and None for ``adjusted_p``.

    The order of prompts does not matter, and nothing but ``adjusted_p`` depends on what else is compared.

    Args:
        results: what was scored.
        models: those of the results, in their order.

    Raises:
        ValueError: models and results disagree; scores are missing, of another shape, or not finite;
            embeddings are not of length 1; there is no prompt.
    """
    names = [model.name for model in models]
    if list(results.scores) != names:
        raise ValueError(f"comparisons: scores are those of {list(results.scores)}, models are {names}")
    check(results)
    measured = {name: _measured(name, results) for name in names}
    found = list(_compared(measured, len(results.prompts), None))
    categories = list(dict.fromkeys(prompt.category for prompt in results.prompts))
    for category in categories if len(categories) > 1 else ():
        rows = np.array([prompt.category == category for prompt in results.prompts])
        part = {
            name: {measure: figure_PM[rows] for measure, figure_PM in of.items()}
            for name, of in measured.items()
        }
        found += _compared(part, int(rows.sum()), category)
    family = {i: one.sign_p for i, one in enumerate(found) if one.category is None and one.sign_p is not None}
    for i, adjusted_p in zip(family, holm(list(family.values())), strict=True):
        found[i] = found[i]._replace(adjusted_p=adjusted_p)
    return tuple(found)


def _measured(name: str, results: Results) -> dict[str, NDArray[np.float64]]:
    """What a model is compared by, (P, M)."""
    first, *_ = results.scores
    feature_PSD, base_PSD = results.scores[name].feature_PSD, results.scores[first].feature_PSD
    measured = dict(results.scores[name].reward_PS)
    if feature_PSD is not None and len(results.seeds) > 1:
        measured[DIVERSITY] = diversity(feature_PSD)[:, None]
        measured[VENDI] = vendi(feature_PSD)[:, None]
    if feature_PSD is not None and base_PSD is not None and name != first:
        measured[DISPLACEMENT] = displacement(feature_PSD, base_PSD)[:, None]
    return measured


def _compared(
    measured: Mapping[str, Mapping[str, NDArray[np.float64]]], num_prompts: int, category: str | None
) -> Iterator[Comparison]:
    """All comparisons over some prompts: by what both models have, then how far from the first one."""
    names = list(measured)
    figure_PM = {(name, measure): value for name, of in measured.items() for measure, value in of.items()}
    gain_PM = {
        (name, other, measure): figure_PM[name, measure] - figure_PM[other, measure]
        for place, name in enumerate(names)
        for other in names[:place]
        for measure in measured[other]
        if measure != DISPLACEMENT
    }
    # all at once: they share their resamples
    means = dict(zip(figure_PM, intervals(_by_prompt(figure_PM.values(), num_prompts)), strict=True))
    differences = intervals(_by_prompt(gain_PM.values(), num_prompts))
    rates = win_rates(_by_prompt(((1 + np.sign(gain)) / 2 for gain in gain_PM.values()), num_prompts))
    for (pair, gain), difference, rate in zip(gain_PM.items(), differences, rates, strict=True):
        name, other, measure = pair
        gain_P = gain.mean(1)
        yield Comparison(
            name,
            other,
            measure,
            category,
            num_prompts,
            means[name, measure],
            against_mean=means[other, measure],
            difference=difference,
            median_difference=float(np.median(gain_P)),
            wins=int((gain > 0).sum()),
            ties=int((gain == 0).sum()),
            losses=int((gain < 0).sum()),
            win_rate=rate,
            sign_p=sign_test(int((gain_P > 0).sum()), int((gain_P < 0).sum())),
        )
    for (name, measure), interval in means.items():
        if measure == DISPLACEMENT:
            yield Comparison(name, names[0], measure, category, num_prompts, interval)


def _by_prompt(figures_PM: Iterable[NDArray[np.float64]], num_prompts: int) -> NDArray[np.float64]:
    """The mean of every prompt, (P, K)."""
    return np.array([figure_PM.mean(1) for figure_PM in figures_PM]).reshape(-1, num_prompts).T
