"""Over-optimisation over the steps of a training, in sentences."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from alignkit.evaluation.contents import Evaluated
from alignkit.evaluation.verdicts.standing import Standing, Standings, listed


def series(models: Sequence[Evaluated]) -> dict[str, tuple[Evaluated, ...]]:
    """Checkpoints of each training of which there are several, by step."""
    found: dict[str, list[Evaluated]] = {}
    for model in models:
        if model.series and model.step is not None:
            found.setdefault(model.series, []).append(model)
    return {
        name: tuple(sorted(members, key=lambda model: model.step or 0))
        for name, members in found.items()
        if len(members) > 1
    }


def over_steps(members: Sequence[Evaluated], standings: Standings) -> Iterator[str]:
    """Says where rewards that training never saw peaked, and since when they fall.

    A reward fell if the last checkpoint is worse than the one at the peak, by the same rule as any two
    models; since the first checkpoint from which on all are. The peak is the largest of several means, which
    overstates a fall from it; the corrected test counts every pair of checkpoints.

    Args:
        members: checkpoints of one training, by step.
        standings: of all models.
    """
    trained_on = [reward for reward in standings.rewards if reward in members[0].trained_on]
    last = members[-1]
    where = f"{last.series}, steps {members[0].step} to {last.step}"
    stayed = []
    for reward in standings.rewards:
        if reward in trained_on:
            continue
        peak = max(members, key=lambda model: standings.mean(model.name, reward))
        later = members[members.index(peak) + 1 :]
        worse = [
            standings.difference(one.name, peak.name, reward).standing is Standing.LOWER for one in later
        ]
        if not worse or not worse[-1]:
            stayed.append(f"{reward} (highest at step {peak.step})")
            continue
        since = later[-len(list(takewhile(bool, reversed(worse))))]
        fall = standings.difference(last.name, peak.name, reward)
        rises = [
            f", while {gain.measure}, trained on, rises ({gain.figures()})"
            for gain in standings.differences(last.name, peak.name, trained_on)
            if gain.standing is Standing.HIGHER
        ]
        yield (
            f"{where}: {reward}{', which training never saw,' if trained_on else ''} peaks at step "
            f"{peak.step} and is worse from step {since.step} on, at the last one by "
            f"{fall.figures()}{''.join(rises)}."
        )
    if stayed:
        yield f"{where}: no fall from a peak that is significant on {listed(stayed)}."
