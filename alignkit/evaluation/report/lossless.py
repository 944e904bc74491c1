"""A report as JSON, and back. Suffixes: P prompts; S seeds; D width of the features."""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.evaluation.contents import Comparison, Evaluated, Report
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.bootstrap import Interval

SCHEMA = 1
# what fits stands in one line
WIDTH = 120
INTERVALS = ("mean", "against_mean", "difference", "win_rate")


def to_json(report: Report) -> str:
    """A report as text. Every float has as many digits as it takes to get the same float again.

    Embeddings stand as base64 of little-endian float64: as digits they would take more than twice the room.

    Raises:
        ValueError: a figure is not a number or infinite, which JSON has no word for.
    """
    plain = {
        "schema": SCHEMA,
        "title": report.title,
        "verdicts": report.verdicts,
        "models": [model._asdict() for model in report.models],
        "comparisons": [comparison_to_plain(comparison) for comparison in report.comparisons],
        "results": {
            "prompts": [prompt._asdict() for prompt in report.results.prompts],
            "seeds": report.results.seeds,
            "scores": {
                name: _scores_to_plain(name, scores) for name, scores in report.results.scores.items()
            },
        },
        "pictures": report.pictures,
        "manifest": report.manifest,
    }
    # through JSON once: lists for tuples, and Python's own numbers for numpy's
    plain = json.loads(json.dumps(plain, default=_number))
    for place, value in _floats(plain, ()):
        if not math.isfinite(value):
            raise ValueError(f"report: {_named(place, plain)} is {value}; scores and figures must be finite")
    return _lines(plain, "") + "\n"


def from_json(text: str) -> Report:
    """The report that ``to_json`` made a text of; tuples within its manifest have become lists.

    Raises:
        ValueError: it is none, or was written by another version, in another way.
    """
    try:
        plain = json.loads(text)
        schema = plain["schema"]
        if schema == SCHEMA:
            return _report(plain)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"report.json: is no report, or is damaged: {error!r}") from error
    raise ValueError(f"report.json: schema must be {SCHEMA}, got {schema}: write it again")


def _report(plain: Mapping[str, Any]) -> Report:
    results = plain["results"]
    return Report(
        plain["title"],
        tuple(plain["verdicts"]),
        tuple(Evaluated(**{**model, "trained_on": tuple(model["trained_on"])}) for model in plain["models"]),
        tuple(_comparison(values) for values in plain["comparisons"]),
        Results(
            tuple(Prompt(**prompt) for prompt in results["prompts"]),
            tuple(results["seeds"]),
            {name: _scores(values) for name, values in results["scores"].items()},
        ),
        {name: tuple(map(tuple, paths)) for name, paths in plain["pictures"].items()},
        plain["manifest"],
    )


def comparison_to_plain(comparison: Comparison) -> dict[str, Any]:
    """A comparison with named bounds of its intervals."""
    values = comparison._asdict()
    return values | {name: values[name]._asdict() for name in INTERVALS if values[name] is not None}


def _comparison(values: Mapping[str, Any]) -> Comparison:
    intervals = {name: Interval(**values[name]) for name in INTERVALS if values[name] is not None}
    return Comparison(**{**values, **intervals})


def _scores_to_plain(model: str, scores: Scores) -> dict[str, Any]:
    rewards = {name: reward_PS.tolist() for name, reward_PS in scores.reward_PS.items()}
    return {"reward_PS": rewards, "feature_PSD": _packed(model, scores.feature_PSD)}


def _scores(values: Mapping[str, Any]) -> Scores:
    rewards = {name: np.array(reward_PS, np.float64) for name, reward_PS in values["reward_PS"].items()}
    packed = values["feature_PSD"]
    if packed is None:
        return Scores(rewards)
    flat = np.frombuffer(base64.b64decode(packed["float64"]), "<f8").astype(np.float64)
    return Scores(rewards, flat.reshape(packed["shape"]))


def _packed(model: str, feature_PSD: NDArray[np.float64] | None) -> dict[str, Any] | None:
    if feature_PSD is None:
        return None
    if not np.isfinite(feature_PSD).all():
        raise ValueError(f"report: embeddings of {model} are not finite; scores and figures must be")
    return {
        "shape": feature_PSD.shape,
        "float64": base64.b64encode(feature_PSD.astype("<f8").tobytes()).decode(),
    }


def _number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"report: JSON has no {type(value).__name__}, such as {value!r}")


def _floats(value: object, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], float]]:
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _floats(part, (*place, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _floats(part, (*place, index))


def _named(place: tuple[str | int, ...], plain: Mapping[str, Any]) -> str:
    """Where a figure stands, in words where there are some."""
    if place[:2] == ("results", "scores"):
        model, _, measure, prompt, seed = place[2:]
        asked = plain["results"]["prompts"][prompt]["text"]
        return f"the {measure} of {model} for {asked!r}, seed {plain['results']['seeds'][seed]},"
    if place[0] == "comparisons":
        values = plain["comparisons"][place[1]]
        category = "all prompts" if values["category"] is None else repr(values["category"])
        about = f"{values['measure']} of {values['model']} against {values['against']}, {category},"
        return f"{'.'.join(map(str, place[2:]))} of {about}"
    return ".".join(map(str, place))


def _lines(value: object, indent: str) -> str:
    """JSON in which lists and mappings are broken into lines only when they do not fit into one."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(indent) + len(line) <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {_lines(part, inner)}" for key, part in value.items()
        ]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _lines(part, inner) for part in value) + f"\n{indent}]"
