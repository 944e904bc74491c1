"""Intervals that cover, tests that hold, and comparisons that add up.

Shape suffixes: P prompts; S seeds; K simulated evaluations; D width of the features.
"""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from alignkit.evaluation.contents import Comparison, Evaluated
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.bootstrap import Interval, intervals, student_quantile
from alignkit.evaluation.statistics.comparisons import comparisons
from alignkit.evaluation.statistics.significance import holm, sign_test
from alignkit.evaluation.statistics.spread import vendi
from alignkit.evaluation.statistics.win_rates import win_rates

Array = NDArray[np.float64]
DRAWS = 500
LAWS = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "skewed": lambda generator, shape: generator.exponential(size=shape) - 1,
    "heavy-tailed": lambda generator, shape: generator.standard_t(3, size=shape),
}


@pytest.mark.parametrize("num_prompts", [20, 57, 200])
@pytest.mark.parametrize("law", LAWS)
def test_intervals_of_a_mean_cover_it(law: str, num_prompts: int) -> None:
    """Every law has mean 0; 95 % of 500 draws are 475, and 2 % are two of their standard deviations."""
    value_PK = LAWS[law](np.random.default_rng(5), (num_prompts, DRAWS))
    found = intervals(value_PK, num_resamples=2000)
    assert 0.90 <= np.mean([interval.low <= 0 <= interval.high for interval in found]) <= 0.98
    # and are no longer than need be: 1.96 standard errors on either side, a little more of few prompts
    error_K = value_PK.std(0, ddof=1) / math.sqrt(num_prompts)
    length_K = np.array([interval.high - interval.low for interval in found]) / (2 * error_K)
    assert 1.9 < np.median(length_K) < 2.5


@pytest.mark.parametrize("num_prompts", [20, 57, 200])
@pytest.mark.parametrize("rate", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("alike", [3.0, math.inf])
def test_intervals_of_a_win_rate_cover_it(num_prompts: int, rate: float, alike: float) -> None:
    """Four pictures of a prompt; prompts have a rate of their own around the true one, or that one."""
    generator = np.random.default_rng(6)
    shape = num_prompts, DRAWS
    rate_PK = (
        np.full(shape, rate) if alike == math.inf else generator.beta(rate * alike, (1 - rate) * alike, shape)
    )
    found = win_rates(generator.binomial(4, rate_PK) / 4)
    assert 0.90 <= np.mean([interval.low <= rate <= interval.high for interval in found]) <= 0.98
    assert all(0 <= low <= mean <= high <= 1 for mean, low, high in found)


def test_prompts_that_all_won_do_not_say_that_none_is_ever_lost() -> None:
    """Wilson's interval of n draws without a loss ends at 1 / (1 + t^2 / n); t of 19 degrees is 2.0930."""
    ((rate, low, high),) = win_rates(np.ones((20, 1)))
    assert (rate, high) == (1.0, 1.0)
    assert low == pytest.approx(1 / (1 + 2.0930**2 / 20), rel=1e-4)


def test_pictures_of_a_prompt_that_agree_count_once() -> None:
    """8 pictures that always agree tell as much as one: the interval is that of 20 draws, 14 of them won.

    The variance over prompts is then r (1 - r) 20 / 19, and 19 draws are as good as t's degrees.
    """
    ((rate, low, high),) = win_rates(np.array([1.0] * 14 + [0.0] * 6)[:, None])
    t, n, r = 2.0930, 19, 0.7
    half = t / (1 + t**2 / n) * math.sqrt(r * (1 - r) / n + t**2 / (4 * n**2))
    centre = (r + t**2 / (2 * n)) / (1 + t**2 / n)
    np.testing.assert_allclose((rate, low, high), (0.7, centre - half, centre + half), rtol=1e-4)


@pytest.mark.parametrize(
    ("freedom", "point"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (19, 2.0930), (200, 1.9719)],
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, point: float) -> None:
    assert student_quantile(freedom) == pytest.approx(point, rel=2e-3)


def interval_of(value_P: NDArray[np.float64]) -> Interval:
    (interval,) = intervals(value_P[:, None])
    return interval


def test_few_prompts_have_students_interval_at_least() -> None:
    """Of two values, 0 and 2: mean 1, standard error 1, and t of one degree is 12.7."""
    assert interval_of(np.array([0.0, 2.0])) == pytest.approx((1, 1 - 12.7062, 1 + 12.7062), rel=1e-4)


def test_one_prompt_that_differs_does_not_break_an_interval() -> None:
    """In a third of all resamples of 20 prompts it is missing; the interval stays finite and holds 0."""
    interval = interval_of(np.array([1.0] + [0.0] * 19))
    assert interval.mean == 0.05
    assert -0.5 < interval.low < 0 < 0.1 < interval.high < 0.5


def test_intervals_do_not_depend_on_scale_order_or_company() -> None:
    value_PK = np.random.default_rng(0).exponential(size=(57, 300))
    alone = interval_of(value_PK[:, 270])
    beside = intervals(value_PK)[270]
    np.testing.assert_allclose(beside, alone, rtol=1e-12)
    assert interval_of(value_PK[::-1, 270]) == alone
    np.testing.assert_allclose(interval_of(1e-6 * value_PK[:, 270] + 3e-6), np.array(alone) * 1e-6 + 3e-6)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (3, 3), (2, 9), (10, 4), (11, 1)])
def test_sign_test_counts_all_outcomes(wins: int, losses: int) -> None:
    """Of all 2^n outcomes of n coins, the share that is as uneven as this one or more."""
    uneven = [
        abs(2 * sum(outcome) - len(outcome)) >= abs(wins - losses)
        for outcome in itertools.product((0, 1), repeat=wins + losses)
    ]
    assert sign_test(wins, losses) == sum(uneven) / len(uneven)


def test_sign_test_of_thousands_of_prompts_does_not_overflow() -> None:
    """2,000 coins: 1,000 - 31.5 is 1.41 deviations of sqrt(2000)/2, which a normal law has 0.159 beyond."""
    assert sign_test(968, 1032) == pytest.approx(math.erfc(31.5 / math.sqrt(500) / math.sqrt(2)), rel=1e-3)
    assert sign_test(0, 3000) == 0.0


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04, which may not be less."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


def test_vendi_counts_different_pictures() -> None:
    """One picture four times is 1; four at right angles are 4; two of each of two are 2."""
    identity = np.eye(4)
    feature_PSD = np.stack([identity[[0, 0, 0, 0]], identity, identity[[0, 1, 0, 1]]])
    np.testing.assert_allclose(vendi(feature_PSD), [1, 4, 2])


@pytest.mark.parametrize("angle", [0.1, 1.0, 2.5])
def test_vendi_of_two_pictures(angle: float) -> None:
    """K/2 has eigenvalues (1 +- cos) / 2."""
    feature_PSD = np.array([[[1.0, 0.0], [math.cos(angle), math.sin(angle)]]])
    share = np.array([1 + math.cos(angle), 1 - math.cos(angle)]) / 2
    np.testing.assert_allclose(vendi(feature_PSD), [math.exp(-(share * np.log(share)).sum())])


def test_vendi_of_one_picture_says_nothing() -> None:
    with pytest.raises(ValueError, match="vendi: needs at least 2 images of a prompt, got 1"):
        vendi(np.ones((3, 1, 1)))


def unit(value: Array) -> Array:
    return value / np.linalg.norm(value, axis=-1, keepdims=True)


def simulated(num_prompts: int = 24, num_seeds: int = 3, *, seed: int = 0) -> Results:
    """Three models, two rewards, three categories of different sizes."""
    generator = np.random.default_rng(seed)
    categories = ["Animals", "Food", "Food", "People", "Food", "Animals"]
    prompts = tuple(Prompt(f"prompt {i}", categories[i % 6]) for i in range(num_prompts))
    scores = {
        name: Scores(
            {
                "Taste": generator.normal(shift, 1, (num_prompts, num_seeds)),
                # of few values, so that there are ties
                "Correct": generator.integers(2, size=(num_prompts, num_seeds)).astype(float),
            },
            unit(generator.normal(size=(num_prompts, num_seeds, 5))),
        )
        for name, shift in (("base", 0.0), ("dpo", 0.3), ("dmpo", 0.8))
    }
    return Results(prompts, tuple(range(num_seeds)), scores)


def compared(results: Results) -> dict[tuple[str, str, str, str | None], Comparison]:
    found = comparisons(results, [Evaluated(name, "") for name in results.scores])
    by_key = {(one.model, one.against, one.measure, one.category): one for one in found}
    assert len(by_key) == len(found)
    return by_key


def test_every_model_meets_every_one_before_it() -> None:
    pairs = [("dpo", "base"), ("dmpo", "base"), ("dmpo", "dpo")]
    measures = ["Taste", "Correct", "diversity", "vendi"]
    expected = {
        *((*pair, measure) for pair in pairs for measure in measures),
        ("dpo", "base", "displacement"),
        ("dmpo", "base", "displacement"),
    }
    found = compared(simulated())
    assert {key[:3] for key in found} == expected
    for category in (None, "Animals", "Food", "People"):
        assert {key[:3] for key in found if key[3] == category} == expected


def test_figures_of_a_reward_are_those_of_its_pairs() -> None:
    """Counted one by one, in plain Python."""
    results = simulated()
    ours = results.scores["dmpo"].reward_PS["Correct"].tolist()
    theirs = results.scores["dpo"].reward_PS["Correct"].tolist()
    pairs = [pair for mine, other in zip(ours, theirs, strict=True) for pair in zip(mine, other, strict=True)]
    gains = [sum(mine) / 3 - sum(other) / 3 for mine, other in zip(ours, theirs, strict=True)]
    one = compared(results)["dmpo", "dpo", "Correct", None]
    assert (one.wins, one.losses) == (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
    assert one.ties == sum(a == b for a, b in pairs) > 0
    assert one.win_rate is not None
    assert one.win_rate.mean == pytest.approx((one.wins + one.ties / 2) / len(pairs))
    assert one.difference is not None
    assert one.difference.mean == pytest.approx(sum(gains) / len(gains))
    assert one.against_mean is not None
    assert one.mean.mean - one.against_mean.mean == pytest.approx(one.difference.mean)
    assert one.median_difference == pytest.approx(sorted(gains)[11] / 2 + sorted(gains)[12] / 2)
    assert one.sign_p == sign_test(sum(g > 1e-9 for g in gains), sum(g < -1e-9 for g in gains))


def test_pairing_takes_out_how_prompts_differ() -> None:
    """Prompts differ by 100, pictures of a prompt by 10, and the model gains 1 or 2 on every picture.

    The variance of a prompt's gain is 1/16, and t of 29 degrees 2.045.
    """
    generator = np.random.default_rng(0)
    base_PS = 100 * generator.normal(size=(30, 1)) + 10 * generator.normal(size=(30, 4))
    gain_PS = generator.integers(1, 3, size=(30, 4))
    scores = {"base": Scores({"R": base_PS}), "dpo": Scores({"R": base_PS + gain_PS})}
    results = Results(tuple(Prompt(str(i)) for i in range(30)), (0, 1, 2, 3), scores)
    one = compared(results)["dpo", "base", "R", None]
    assert one.difference is not None
    assert one.difference.low < 1.5 < one.difference.high
    length = one.difference.high - one.difference.low
    assert length == pytest.approx(2 * 2.045 * math.sqrt(1 / 16 / 30), rel=0.4)
    assert one.mean.high - one.mean.low > 30
    assert one.sign_p == 2 * 0.5**30


def test_pictures_without_another_noise_are_not_more_prompts() -> None:
    """Copies of the pictures of each prompt change no interval: prompts are what is drawn."""
    few = simulated(num_seeds=2)
    many = Results(
        few.prompts,
        tuple(range(8)),
        {
            name: Scores({"Taste": np.repeat(s.reward_PS["Taste"], 4, axis=1)})
            for name, s in few.scores.items()
        },
    )
    one, other = (compared(results)["dpo", "base", "Taste", None] for results in (few, many))
    np.testing.assert_allclose(one.difference, other.difference)
    np.testing.assert_allclose(one.win_rate, other.win_rate)
    assert other.wins == 4 * one.wins


def test_nothing_but_the_correction_depends_on_what_else_is_compared() -> None:
    results = simulated()
    two = Results(results.prompts, results.seeds, {n: results.scores[n] for n in ("base", "dmpo")})
    found = compared(results)
    for key, one in compared(two).items():
        other = found[key]
        assert one[:5] == other[:5]
        np.testing.assert_allclose(one.difference or 0, other.difference or 0, rtol=1e-12)
        assert (one.wins, one.sign_p) == (other.wins, other.sign_p)
    key = "dmpo", "base", "Taste", None
    assert compared(two)[key].adjusted_p == pytest.approx(compared(two)[key].sign_p * 4)
    assert found[key].adjusted_p == pytest.approx(found[key].sign_p * 12)


def test_correction_is_over_all_tests_of_all_prompts() -> None:
    found = compared(simulated())
    family = [one for one in found.values() if one.category is None and one.measure != "displacement"]
    assert len(family) == 12
    assert tuple(one.adjusted_p for one in family) == holm([one.sign_p for one in family])
    others = [one for one in found.values() if one not in family]
    assert {one.adjusted_p for one in others} == {None}


def test_categories_partition_the_prompts() -> None:
    found = compared(simulated())
    for key, whole in found.items():
        if key[3] is not None:
            continue
        parts = [found[*key[:3], category] for category in ("Animals", "Food", "People")]
        assert [part.num_prompts for part in parts] == [8, 12, 4]
        means = [part.num_prompts * part.mean.mean for part in parts]
        assert sum(means) / whole.num_prompts == pytest.approx(whole.mean.mean)
        if whole.wins is not None:
            assert sum(part.wins for part in parts) == whole.wins


def test_one_category_is_not_looked_at_again() -> None:
    results = simulated()
    one_room = results._replace(prompts=tuple(p._replace(category="Food") for p in results.prompts))
    assert {key[3] for key in compared(one_room)} == {None}


def test_a_category_is_what_its_prompts_alone_would_be() -> None:
    results = simulated()
    rows = [i for i, prompt in enumerate(results.prompts) if prompt.category == "Food"]
    alone = Results(
        tuple(results.prompts[i] for i in rows),
        results.seeds,
        {
            name: Scores({"Taste": scores.reward_PS["Taste"][rows]}, scores.feature_PSD[rows])
            for name, scores in results.scores.items()
        },
    )
    found = compared(results)
    for key, one in compared(alone).items():
        other = found[*key[:3], "Food"]
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
        assert (one.num_prompts, one.wins, one.sign_p) == (12, other.wins, other.sign_p)


def test_spread_of_a_prompt_is_one_figure() -> None:
    """Pictures of the base at right angles, of the other the same one three times: it lost all prompts."""
    base_PSD = np.tile(np.eye(3), (10, 1, 1))
    same_PSD = np.tile(np.eye(3)[[0, 0, 0]], (10, 1, 1))
    results = Results(
        tuple(Prompt(str(i)) for i in range(10)),
        (0, 1, 2),
        {"base": Scores({}, base_PSD), "same": Scores({}, same_PSD)},
    )
    found = compared(results)
    one = found["same", "base", "vendi", None]
    assert (one.wins, one.ties, one.losses) == (0, 0, 10)
    assert one.mean.mean == pytest.approx(1)
    assert one.against_mean.mean == pytest.approx(3)
    assert found["same", "base", "diversity", None].difference.mean == pytest.approx(-1)
    moved = found["same", "base", "displacement", None]
    assert moved.mean.mean == pytest.approx(2 / 3)
    assert moved.against_mean is moved.difference is moved.wins is moved.sign_p is None


def test_one_seed_has_displacement_and_no_spread() -> None:
    results = simulated(num_seeds=1)
    assert {key[2] for key in compared(results)} == {"Taste", "Correct", "displacement"}


def test_a_model_against_itself_with_other_seeds_wins_half() -> None:
    """Judged 500 times, 4 pictures of each of 57 prompts, whose scores have their own mean and spread."""
    generator = np.random.default_rng(3)
    mean_P1, spread_P1 = generator.normal(size=(57, 1)), generator.exponential(size=(57, 1))
    scores = {
        name: Scores({f"R{i}": mean_P1 + spread_P1 * generator.gamma(2, size=(57, 4)) for i in range(DRAWS)})
        for name in ("seeds 0 to 3", "seeds 4 to 7")
    }
    found = compared(Results(tuple(Prompt(str(i)) for i in range(57)), (0, 1, 2, 3), scores)).values()
    assert 0.90 <= np.mean([one.win_rate.low <= 0.5 <= one.win_rate.high for one in found]) <= 0.98
    assert 0.90 <= np.mean([one.difference.low <= 0 <= one.difference.high for one in found]) <= 0.98
    # an exact test of 57 prompts says p <= 0.05 in 3.3 % of all cases: 20 losses or fewer, or 20 wins
    assert 0.01 <= np.mean([one.sign_p <= 0.05 for one in found]) <= 0.06
    assert min(one.adjusted_p for one in found) > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: Scores({"Taste": s.reward_PS["Taste"]}, s.feature_PSD),
            "every model needs the same rewards",
        ),
        (lambda s: Scores(s.reward_PS), "one of base and dpo has features, the other has none"),
        (
            lambda s: Scores({n: v[:-1] for n, v in s.reward_PS.items()}, s.feature_PSD),
            r"are \(23, 3\), prom",
        ),
        (lambda s: Scores(s.reward_PS, s.feature_PSD[:, :2]), r"features of dpo are \(24, 2\), prompts and"),
        (lambda s: Scores(s.reward_PS, 2 * s.feature_PSD), "features of dpo must be of length 1"),
        (
            lambda s: Scores({n: np.where(v == v[2, 1], np.nan, v) for n, v in s.reward_PS.items()}),
            "Taste says nan of dpo's picture number 2 of 'prompt 2'",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    results = simulated()
    scores = {**results.scores, "dpo": change(results.scores["dpo"])}
    if scores["dpo"].feature_PSD is None and "features" not in message:
        scores = {name: Scores(s.reward_PS) for name, s in scores.items()}
    with pytest.raises(ValueError, match=message):
        compared(results._replace(scores=scores))


def test_models_must_be_those_that_were_scored() -> None:
    with pytest.raises(
        ValueError, match=r"scores are those of \['base', 'dpo', 'dmpo'\], models are \['base'\]"
    ):
        comparisons(simulated(), [Evaluated("base", "")])
