"""What comparisons come to, in sentences."""

from collections.abc import Iterator, Sequence

from alignkit.evaluation.contents import Comparison, Evaluated
from alignkit.evaluation.statistics.comparisons import DISPLACEMENT, DIVERSITY
from alignkit.evaluation.statistics.significance import sign_test
from alignkit.evaluation.verdicts.series import over_steps, series
from alignkit.evaluation.verdicts.standing import LEVEL, Difference, Standing, Standings, listed
from alignkit.evaluation.wording import bounds, number, percent


def verdicts(models: Sequence[Evaluated], comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Says what was found over all prompts, the most important first.

    A model is better or worse where the interval of the difference leaves out 0, the sign test is
    significant at 0.05 after its correction, and both are of one sign. First every model against the first
    one, by reward; then over-optimisation: a gain on a reward that training saw, while others fall or do not
    rise; what the gain cost in diversity and displacement; the models among each other; checkpoints over
    their steps. Of a series of checkpoints the last one stands among the models.

    Args:
        models: the first is what the others are compared with.
        comparisons: of all of them, by ``statistics.comparisons``.
    """
    if not comparisons:
        return ()
    standings = Standings(comparisons)
    base, *others = models
    runs = series(others)
    last = {name: members[-1] for name, members in runs.items()}
    shown = [model for model in others if model.series not in runs or model is last[model.series]]
    said = [
        *(line for model in shown for line in _against_base(model, base, standings)),
        *(line for model in shown for line in _over_optimised(model, base, standings)),
        *(line for members in runs.values() for line in over_steps(members, standings)),
        *(line for model in shown for line in _cost(model, base, standings)),
        *_among(shown, standings),
        *_reading(standings),
    ]
    return tuple(said)


def _against_base(model: Evaluated, base: Evaluated, standings: Standings) -> Iterator[str]:
    found = standings.differences(model.name, base.name, standings.rewards)
    begins = {
        Standing.HIGHER: f"{model.name} is better than {base.name} on ",
        Standing.LOWER: f"{model.name} is worse than {base.name} on ",
        Standing.DIVIDED: f"{model.name} and {base.name} are divided, mean and most pictures disagree, on ",
        Standing.UNSURE: f"Not significant after correction: {model.name} against {base.name} on ",
        Standing.UNKNOWN: f"Cannot tell {model.name} from {base.name} on ",
    }
    for standing, begin in begins.items():
        if those := [one for one in found if one.standing is standing]:
            yield f"{begin}{listed(those)}."


def _over_optimised(model: Evaluated, base: Evaluated, standings: Standings) -> Iterator[str]:
    seen = [reward for reward in standings.rewards if reward in model.trained_on]
    unseen = [reward for reward in standings.rewards if reward not in model.trained_on]
    if seen and not unseen:
        yield (
            f"{model.name} was trained on every reward that judged it: whether it over-optimises cannot be "
            "seen; add a reward that training never saw."
        )
    gained = _of(Standing.HIGHER, standings.differences(model.name, base.name, seen))
    if not gained or not unseen:
        return
    found = standings.differences(model.name, base.name, unseen)
    fell, rose = _of(Standing.LOWER, found), _of(Standing.HIGHER, found)
    doubtful = [one for one in found if one.interval.high < 0]
    gain = f"{model.name} gains on {_names(gained)}, which training saw, and"
    unseen_gain = (
        f"on {_names(rose)}, which it did not" if rose else f"on no other for certain: {_names(found)}"
    )
    if fell:
        others = f"; it gains on {_names(rose)}" if rose else ""
        yield f"Over-optimised: {gain} loses on {_names(fell)}, which it did not{others}."
    elif not rose or doubtful:
        loss = f"; it may lose on {_names(doubtful)}" if doubtful else ""
        yield f"A sign of over-optimisation: {gain} {unseen_gain}{loss}."
    else:
        yield f"No sign of over-optimisation: {gain} {unseen_gain}."


def _cost(model: Evaluated, base: Evaluated, standings: Standings) -> Iterator[str]:
    """Quality against diversity and displacement."""
    moved = standings.comparison(model.name, base.name, DISPLACEMENT)
    if moved is None:
        return
    gained = _of(Standing.HIGHER, standings.differences(model.name, base.name, standings.rewards))
    gains = [f"{number(one.interval.mean)} on {one.measure}" for one in gained]
    gain = f"{model.name} gained {listed(gains or ['nothing for certain'])}"
    distance = f"a displacement of {number(moved.mean.mean)} {bounds(moved.mean)} from {base.name}"
    spread = standings.comparison(model.name, base.name, DIVERSITY)
    if spread is None or spread.against_mean is None:
        yield f"{gain}, at {distance}; diversity needs two seeds."
        return
    found = standings.difference(model.name, base.name, DIVERSITY)
    share = abs(found.interval.mean) / spread.against_mean.mean if spread.against_mean.mean > 0 else 0.0
    amounts = {
        Standing.HIGHER: f"{percent(share)} more diversity",
        Standing.LOWER: f"{percent(share)} less diversity",
        Standing.UNKNOWN: f"a diversity that cannot be told from that of {base.name}",
    }
    amount = amounts.get(found.standing, "a change of diversity that is not significant after correction")
    yield f"{gain}, at {amount} ({found.figures()}) and {distance}."


def _among(shown: Sequence[Evaluated], standings: Standings) -> Iterator[str]:
    """By reward, the highest of several models and those that it is ahead of."""
    if len(shown) < 2:
        return
    for reward in standings.rewards:
        names = sorted((model.name for model in shown), key=lambda name: -standings.mean(name, reward))
        ahead: list[str] = []
        level: list[str] = []
        for name in names[1:]:
            found = standings.difference(names[0], name, reward)
            (ahead if found.standing is Standing.HIGHER else level).append(f"{name} ({found.figures()})")
        parts = [f"ahead of {listed(ahead)}"] if ahead else []
        parts += [f"not for certain ahead of {listed(level)}"] if level else []
        yield f"Of these models {names[0]} is highest on {reward}: {'; '.join(parts)}."


def _reading(standings: Standings) -> Iterator[str]:
    """What the figures in brackets are."""
    prompts, tests = standings.num_prompts, standings.num_tests
    if not tests:
        return
    yield (
        f"Paired by prompt and seed; 95 % intervals over {prompts} prompts; p of a sign test over prompts, "
        f"corrected by Holm's method for the number of comparisons, {tests}."
    )
    if tests * sign_test(prompts, 0) >= LEVEL:
        yield f"With {prompts} prompts no test can be significant after correction: use more prompts."


def _of(standing: Standing, found: Sequence[Difference]) -> list[Difference]:
    return [one for one in found if one.standing is standing]


def _names(found: Sequence[Difference]) -> str:
    return listed([one.measure for one in found])
