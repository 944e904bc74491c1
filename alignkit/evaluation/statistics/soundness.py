"""Whether results can be compared at all."""

import numpy as np

from alignkit.evaluation.results import Results, Scores


def check(results: Results) -> None:
    """Checks that every model was scored alike, on every prompt and seed.

    Raises:
        ValueError: scores are missing, of another shape, or not finite; embeddings are not of length 1.
    """
    first, *_ = results.scores
    base = results.scores[first]
    for name, scores in results.scores.items():
        if scores.reward_PS.keys() != base.reward_PS.keys():
            raise ValueError(
                f"comparisons: {name} was scored by {sorted(scores.reward_PS)}, {first} by "
                f"{sorted(base.reward_PS)}; every model needs the same rewards"
            )
        if (scores.feature_PSD is None) != (base.feature_PSD is None):
            raise ValueError(
                f"comparisons: one of {first} and {name} has features, the other has none; "
                "give both or neither"
            )
        _check_rewards(name, scores, results)
        _check_features(name, scores, results)


def _check_rewards(name: str, scores: Scores, results: Results) -> None:
    shape = len(results.prompts), len(results.seeds)
    for reward, reward_PS in scores.reward_PS.items():
        if reward_PS.shape != shape:
            raise ValueError(
                f"comparisons: scores of {name} by {reward} are {reward_PS.shape}, prompts and seeds {shape}"
            )
        if len(bad := np.argwhere(~np.isfinite(reward_PS))):
            row, column = bad[0]
            raise ValueError(
                f"comparisons: {reward} says {reward_PS[row, column]} of {name}'s picture number "
                f"{column + 1} of {results.prompts[row].text!r}; scores must be finite"
            )


def _check_features(name: str, scores: Scores, results: Results) -> None:
    if scores.feature_PSD is None:
        return
    shape = len(results.prompts), len(results.seeds)
    if scores.feature_PSD.shape[:2] != shape:
        raise ValueError(
            f"comparisons: features of {name} are {scores.feature_PSD.shape[:2]}, prompts and seeds {shape}"
        )
    if not np.allclose(np.square(scores.feature_PSD).sum(2), 1, atol=1e-3):
        raise ValueError(f"comparisons: features of {name} must be of length 1 and finite")
