"""What a report says, before anybody lays it out: it is written as JSON, as a page and as Markdown."""

from typing import Any, NamedTuple

from alignkit.evaluation.results import Results
from alignkit.evaluation.statistics.bootstrap import Interval


class Comparison(NamedTuple):
    """One measure of one model against another, paired by prompt and seed.

    Args:
        model: whose figures these are.
        against: with whom it is compared.
        measure: class name of a reward; or "diversity", "vendi" or "displacement", by embeddings.
        category: of the prompts that were counted; None for all of them.
        num_prompts: how many were counted.
        mean: of the model, with a 95 % interval over prompts.
        against_mean: of the other; None for displacement, which is 0 there.
        difference: model minus other.
        median_difference: over prompts.
        wins: pictures that score higher than the other model's of the same prompt and seed; prompts, for
            figures of a prompt's pictures together.
        ties: those that score the same.
        losses: those that score lower.
        win_rate: share of wins, ties counted half.
        sign_p: of the two-sided sign test over prompts.
        adjusted_p: corrected for the number of comparisons of all prompts together.
    """

    model: str
    against: str
    measure: str
    category: str | None
    num_prompts: int
    mean: Interval
    against_mean: Interval | None = None
    difference: Interval | None = None
    median_difference: float | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    win_rate: Interval | None = None
    sign_p: float | None = None
    adjusted_p: float | None = None


class Evaluated(NamedTuple):
    """A model that was looked at.

    Args:
        name: as the user named it.
        source: folder, hub id or run that it came from.
        series: models of one training share it, such as checkpoints of a run; empty for a model alone.
        step: optimizer step within its series.
        trained_on: class names of rewards that its training has seen.
    """

    name: str
    source: str
    series: str = ""
    step: int | None = None
    trained_on: tuple[str, ...] = ()


class Report(NamedTuple):
    """Everything that a report says.

    Args:
        title: what was compared.
        verdicts: sentences, the most important first.
        models: the first is what the others are compared with.
        comparisons: every model against every other that came before it, over all prompts and by category.
        results: what they were computed from.
        pictures: by model, prompt and seed: paths of PNG files, relative to the report's folder.
        manifest: what is needed to do it again: sampler, steps, guidance, dtype, seeds, hashes, versions,
            command.
    """

    title: str
    verdicts: tuple[str, ...]
    models: tuple[Evaluated, ...]
    comparisons: tuple[Comparison, ...]
    results: Results
    pictures: dict[str, tuple[tuple[str, ...], ...]]
    manifest: dict[str, Any]
