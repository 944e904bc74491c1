"""What evaluation computes, for any scores. Suffixes: P prompts; S seeds; D width of the features."""

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from alignkit.evaluation.contents import Comparison, Evaluated
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.bootstrap import intervals
from alignkit.evaluation.statistics.comparisons import comparisons
from alignkit.evaluation.statistics.significance import holm, sign_test
from alignkit.evaluation.statistics.spread import diversity, vendi
from alignkit.evaluation.statistics.win_rates import win_rates

Array = NDArray[np.float64]
# for what takes a while; thorough profiles have more, too
FEWER = settings(max_examples=settings().max_examples // 2)
SCORES = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, allow_subnormal=False))


@st.composite
def results(draw: Any) -> Results:
    """Two models; many scores are equal, and many prompts have few categories."""
    count, seeds = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    category = st.sampled_from(["", "Animals", "Food"])
    prompts = tuple(Prompt(f"prompt {place}", draw(category)) for place in range(count))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))

    def scores() -> Scores:
        feature_PSD = generator.normal(size=(count, seeds, 4))
        return Scores(
            {"Taste": draw(arrays.arrays(np.float64, (count, seeds), elements=SCORES))},
            feature_PSD / np.linalg.norm(feature_PSD, axis=-1, keepdims=True),
        )

    return Results(prompts, tuple(range(seeds)), {"base": scores(), "dpo": scores()})


def compared(found: Results) -> tuple[Comparison, ...]:
    return comparisons(found, [Evaluated(name, "") for name in found.scores])


@FEWER
@given(found=results(), data=st.data())
def test_order_of_prompts_changes_nothing(found: Results, data: Any) -> None:
    order = data.draw(st.permutations(range(len(found.prompts))))
    scores = {
        name: Scores(
            {reward: reward_PS[order] for reward, reward_PS in of.reward_PS.items()},
            None if of.feature_PSD is None else of.feature_PSD[order],
        )
        for name, of in found.scores.items()
    }
    shuffled = Results(tuple(found.prompts[place] for place in order), found.seeds, scores)
    assert sorted(compared(shuffled), key=repr) == sorted(compared(found), key=repr)


def test_a_spread_whose_square_is_zero_is_none() -> None:
    """2.5e-240, which a search for counterexamples once found."""
    (interval,) = intervals(np.array([[0.0], [0.0], [2.5e-240]]), num_resamples=50)
    assert interval.low == interval.mean == interval.high


@FEWER
@given(found=results())
def test_a_comparison_the_other_way_round_is_its_mirror(found: Results) -> None:
    """Wins are losses, a difference has the other sign, and what is just as likely stays so."""
    (one,) = [c for c in compared(found) if c.measure == "Taste" and c.category is None]
    swapped = Results(found.prompts, found.seeds, dict(reversed(found.scores.items())))
    (other,) = [c for c in compared(swapped) if c.measure == "Taste" and c.category is None]
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.wins + one.ties + one.losses == len(found.prompts) * len(found.seeds)
    assert one.sign_p == other.sign_p
    assert one.mean == other.against_mean
    assert one.difference is not None
    assert other.difference is not None
    # its ends are drawn, and of mirrored prompts others are
    assert math.isclose(one.difference.mean, -other.difference.mean, abs_tol=1e-9)
    assert one.win_rate is not None
    assert other.win_rate is not None
    np.testing.assert_allclose(
        one.win_rate, [1 - other.win_rate.mean, 1 - other.win_rate.high, 1 - other.win_rate.low], atol=1e-9
    )


@given(
    share_PK=st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
        lambda shape: arrays.arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    )
)
def test_intervals_hold_their_mean_and_what_is_possible(share_PK: Array) -> None:
    for interval, mean in zip(win_rates(share_PK), share_PK.mean(0), strict=True):
        assert math.isclose(interval.mean, mean, abs_tol=1e-12)
        assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    for interval, mean in zip(intervals(share_PK, num_resamples=50), share_PK.mean(0), strict=True):
        assert math.isclose(interval.mean, mean, abs_tol=1e-12)
        assert interval.low <= interval.mean <= interval.high


@given(wins=st.integers(0, 300), losses=st.integers(0, 300))
def test_sign_test_is_a_probability_that_falls_with_the_difference(wins: int, losses: int) -> None:
    found = sign_test(wins, losses)
    assert 0 < found <= 1
    assert found == sign_test(losses, wins)
    few, many = sorted((wins, losses))
    assert few == 0 or sign_test(few - 1, many + 1) <= found


@given(p_values=st.lists(st.floats(0, 1), max_size=12), data=st.data())
def test_correction_keeps_the_order_and_knows_no_order(p_values: list[float], data: Any) -> None:
    corrected = holm(p_values)
    assert all(p <= found <= 1 for p, found in zip(p_values, corrected, strict=True))
    pairs = sorted(zip(p_values, corrected, strict=True))
    assert [found for _, found in pairs] == sorted(corrected)
    order = data.draw(st.permutations(range(len(p_values))))
    assert holm([p_values[place] for place in order]) == tuple(corrected[place] for place in order)


@given(seed=st.integers(0, 2**32), seeds=st.integers(2, 5), width=st.integers(1, 6))
def test_how_pictures_differ_does_not_depend_on_order_or_direction(seed: int, seeds: int, width: int) -> None:
    """Turning all embeddings alike changes nothing, nor does the order of the pictures of a prompt."""
    generator = np.random.default_rng(seed)
    feature_PSD = generator.normal(size=(3, seeds, width))
    feature_PSD /= np.linalg.norm(feature_PSD, axis=-1, keepdims=True)
    turn_DD, _ = np.linalg.qr(generator.normal(size=(width, width)))
    other_PSD = (feature_PSD @ turn_DD)[:, generator.permutation(seeds)]
    for measure, low, high in ((diversity, 0, 2), (vendi, 1, seeds)):
        figure_P = measure(feature_PSD)
        np.testing.assert_allclose(measure(other_PSD), figure_P, atol=1e-9)
        assert ((figure_P >= low - 1e-9) & (figure_P <= high + 1e-9)).all()
