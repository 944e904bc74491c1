"""Which pictures an evaluation is made of, and what comes of them. Suffixes: P prompts; S seeds; D width."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignkit.components import Reward
from alignkit.evaluation.drawing import file_name
from alignkit.evaluation.identity import key_of
from alignkit.evaluation.models import Model
from alignkit.evaluation.predicting import Sampling
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.scorers import Scorer
from alignkit.evaluation.store import PICTURES, Picture, Store


def pictures_of(
    model: Model,
    identity: Mapping[str, Any],
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    sampling: Sampling,
) -> list[Picture]:
    """The pictures of a model, a prompt's one after the other. What determines each is in its key."""
    pictures = []
    for place, prompt in enumerate(prompts):
        person = None if model.tokens_ULD is None else place % len(model.tokens_ULD)
        for number in numbers:
            key = key_of(dict(identity), person, prompt.text, number, *sampling)
            name = f"{file_name(prompt.text)}-{number}-{key[:8]}.png"
            path = f"{PICTURES}/{file_name(model.about.name)}/{name}"
            pictures.append(Picture(prompt.text, place, number, key, path))
    return pictures


def cut_off(models: Sequence[Model], prompts: Sequence[Prompt]) -> list[str]:
    """Sentences about prompts that are longer than a model reads, where it says how much it reads."""
    told = {}
    for model in models:
        limit = model.backbone.prompt_limit()
        if limit is None:
            continue
        count = sum(limit.count(prompt.text) > limit.longest for prompt in prompts)
        kind = type(model.backbone).__name__
        if count:
            told[kind, limit.longest] = (
                f"{count} prompts are longer than the {limit.longest} {limit.unit} that {kind} reads; their "
                "ends are cut off"
            )
    return list(told.values())


def results_of(
    store: Store,
    wanted: Mapping[str, Sequence[Picture]],
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    scorers: Sequence[Scorer],
) -> Results:
    """What was said of all pictures, by the names of the models."""
    shape = (len(prompts), len(numbers))
    scores = {}
    for name, pictures in wanted.items():
        said = {
            scorer.name: np.stack([store.values(picture, scorer.key) for picture in pictures])
            for scorer in scorers
        }
        rewards = {
            scorer.name: said[scorer.name].reshape(shape)
            for scorer in scorers
            if isinstance(scorer.judge, Reward)
        }
        features = [
            said[scorer.name].reshape(*shape, -1)
            for scorer in scorers
            if not isinstance(scorer.judge, Reward)
        ]
        scores[name] = Scores(rewards, features[0] if features else None)
    return Results(tuple(prompts), tuple(numbers), scores)


def paths_of(
    wanted: Mapping[str, Sequence[Picture]], num_seeds: int
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Where pictures are, by model, prompt and seed."""
    return {
        name: tuple(
            tuple(picture.path for picture in pictures[first : first + num_seeds])
            for first in range(0, len(pictures), num_seeds)
        )
        for name, pictures in wanted.items()
    }
