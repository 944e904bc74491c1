"""How settings are chosen: on prompts that were trained on and with a seed of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from arms import BASE, DIVERSITY, FIDELITY, MINORITY, TUNING_SEED, UTILITY, Arm, Runs, runs_of

# of the base's fidelity, of DPO's gain
FLOOR, SHARE = 0.97, 0.9


class Figures(NamedTuple):
    """What a choice looks at, on the tuning prompts.

    Args:
        gain: in utility over the base.
        fidelity: as a share of the base's.
        diversity: mean cosine distance.
    """

    gain: float
    fidelity: float
    diversity: float


Rule = Callable[[Mapping[str, Figures]], str]


class Choice(NamedTuple):
    """Arms of which one is chosen.

    Args:
        name: of what is chosen.
        options: by the value of the setting.
        rule: takes the best.
        figures: of one arm.
    """

    name: str
    options: Mapping[str, Arm]
    rule: Rule
    figures: Callable[[Runs, Arm], Figures]

    def table(self) -> dict[str, Figures] | None:
        """Figures by option; None while a run is missing."""
        runs = runs_of(self.options.values(), (TUNING_SEED,))
        return runs and {label: self.figures(runs, arm) for label, arm in self.options.items()}

    def made(self) -> str | None:
        """The label that was chosen; None while a run is missing."""
        table = self.table()
        return table and self.rule(table)


def most_useful(table: Mapping[str, Figures]) -> str:
    """The largest gain among those that keep 97 % of the base's fidelity; else the highest fidelity."""
    kept = {label: found for label, found in table.items() if found.fidelity >= FLOOR}
    if not kept:
        return max(table, key=lambda label: table[label].fidelity)
    return max(kept, key=lambda label: kept[label].gain)


def most_diverse(table: Mapping[str, Figures]) -> str:
    """The highest diversity among those that keep 90 % of the first one's gain."""
    first = next(iter(table.values()))
    others = list(table)[1:]
    kept = [label for label in others if table[label].gain >= SHARE * first.gain]
    return max(kept or others[:1], key=lambda label: table[label].diversity)


def majority(runs: Runs, arm: Arm) -> Figures:
    """By the majority's utility."""
    fidelity = runs.table(arm.name, FIDELITY).mean() / runs.table(BASE, FIDELITY).mean()
    diversity = runs.table(arm.name, DIVERSITY).mean()
    return Figures(float(runs.gain(arm.name, UTILITY).mean()), float(fidelity), float(diversity))


def both_groups(runs: Runs, arm: Arm) -> Figures:
    """By each group's own utility, told of it."""
    told = (("majority", UTILITY), ("minority", MINORITY))
    gain = sum(runs.gain(arm.name, taste, audience=whom).mean() for whom, taste in told) / 2
    fidelity = sum(runs.table(arm.name, FIDELITY, audience=whom).mean() for whom, _ in told) / 2
    diversity = sum(runs.table(arm.name, DIVERSITY, audience=whom).mean() for whom, _ in told) / 2
    return Figures(float(gain), float(fidelity / runs.table(BASE, FIDELITY).mean()), float(diversity))


def choice(
    name: str,
    options: Mapping[str, Arm],
    rule: Rule = most_useful,
    figures: Callable[[Runs, Arm], Figures] = majority,
) -> Choice:
    """A choice, by the majority's utility unless said otherwise."""
    return Choice(name, options, rule, figures)


def grid(name: str, key: str, values: Sequence[float], **settings: object) -> dict[str, Arm]:
    """An arm per value of a setting, such as ``dpo_500``. Dots in the keys of others are written ``__``."""
    first = {inner.replace("__", "."): value for inner, value in settings.items()}
    return {f"{value:g}": Arm(f"{name}_{value:g}", {**first, key: value}) for value in values}
