"""What is pluggable: every hook of alignkit, and nothing else.

A plugin is a module that a distribution names in the entry-point group ``alignkit``. It implements any of the
hooks below; each is called once, at start-up, takes no arguments today and answers with *names*: a mapping
from the name that a config uses to ``"package.module:Class"``, which is imported when it is chosen. So a
plugin's top module imports nothing heavy, and the name is the name of the class.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pluggy

GROUP = "alignkit"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Paper(NamedTuple):
    """Where a plugin's method comes from.

    Args:
        title: title of the paper.
        authors: such as "Wallace et al."
        year: of the first public version.
        url: where it can be read.
        components: names of the components that implement it.
        configs: packaged configs that run it.
        deviations: where the plugin leaves the paper, or had to derive what could not be found, one sentence
            each.
    """

    title: str
    authors: str
    year: int
    url: str
    components: tuple[str, ...]
    configs: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


class Command(NamedTuple):
    """An ``alignkit NAME``, a plugin's or our own.

    Args:
        target: "package.module:function", imported when the command is called; takes the catalog and the
            arguments after the name, returns the exit code, and raises ``alignkit.mistakes.UsageError`` for
            a user's mistake.
        help: what it does, in a few words.
    """

    target: str
    help: str


@hookspec
def alignkit_objectives() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Losses over the scored candidates of a prompt: subclasses of ``alignkit.Objective``."""


@hookspec
def alignkit_weightings() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Weights and margins of prompts: subclasses of ``alignkit.Weighting``."""


@hookspec
def alignkit_samplers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Which points, on which path to which candidates: subclasses of ``alignkit.Sampler``."""


@hookspec
def alignkit_conditioners() -> Mapping[str, str]:  # type: ignore[empty-body]
    """What the policy is told besides the prompt: subclasses of ``alignkit.Conditioner``."""


@hookspec
def alignkit_backbones() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Adapters around text-to-image models: subclasses of ``alignkit.Backbone``."""


@hookspec
def alignkit_sources() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Where preference pairs come from: subclasses of ``alignkit.PairSource``."""


@hookspec
def alignkit_rewards() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Scores of single images: subclasses of ``alignkit.Reward``."""


@hookspec
def alignkit_features() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Embeddings of images, by whose distances diversity is measured: subclasses of ``alignkit.Features``."""


@hookspec
def alignkit_suites() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Prompts that models are evaluated on: subclasses of ``alignkit.PromptSuite``."""


@hookspec
def alignkit_commands() -> Mapping[str, Command]:  # type: ignore[empty-body]
    """Commands of a plugin's own, beside ``alignkit fit``: a name and where its function is."""


@hookspec
def alignkit_papers() -> Iterable[Paper]:  # type: ignore[empty-body]
    """The papers that a plugin implements: plain data for ``alignkit list`` and the README."""


KINDS = {
    "objective": "alignkit_objectives",
    "weighting": "alignkit_weightings",
    "sampler": "alignkit_samplers",
    "conditioner": "alignkit_conditioners",
    "backbone": "alignkit_backbones",
    "source": "alignkit_sources",
    "reward": "alignkit_rewards",
    "features": "alignkit_features",
    "suite": "alignkit_suites",
}

# alignkit's own commands, whose names no plugin may take
COMMANDS = {
    "fit": Command("alignkit.training:fit", "align a model: alignkit fit --config FILE"),
    "sweep": Command(
        "alignkit.sweep.command:main", "run a config with several values of its keys, and compare"
    ),
    "plan": Command("alignkit.planning.command:main", "say what a run will need, before it runs"),
    "validate": Command("alignkit.training:validate", "score a checkpoint on held-out pairs and prompts"),
    "generate": Command(
        "alignkit.generate:generate", "draw pictures with a run's model, base beside aligned"
    ),
    "evaluate": Command(
        "alignkit.evaluation.command:main", "compare models: the same prompts and noise, scores, a report"
    ),
    "data": Command(
        "alignkit.data.command:main",
        "look at a config's pairs before training: alignkit data check CONFIG",
    ),
    "pairs": Command(
        "alignkit.pairs.command:main", "make preference pairs of a model's own pictures, judged by rewards"
    ),
    "cache": Command(
        "alignkit.data.cache.command:cache", "encode a config's pictures and prompts once, to train from"
    ),
    "list": Command(
        "alignkit.cli:list_installed",
        "list what is installed; --configs lists the packaged configs, --papers their table",
    ),
}
