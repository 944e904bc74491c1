"""What comparisons come to: sentences over figures that are given."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from alignkit.evaluation.contents import Comparison, Evaluated
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.evaluation.statistics.comparisons import comparisons
from alignkit.evaluation.verdicts.sentences import verdicts
from alignkit.evaluation.verdicts.standing import Difference, Standing
from alignkit.evaluation.wording import MINUS

BASE, DPO = Evaluated("base", "base"), Evaluated("dpo", "runs/dpo")
UP, DOWN, FLAT = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.1, -0.1, 0.3)


def said_of(models: Sequence[Evaluated], found: Sequence[Comparison]) -> tuple[str, ...]:
    """Verdicts, with the minus of a keyboard."""
    return tuple(sentence.replace(MINUS, "-") for sentence in verdicts(models, found))


def compared(
    measure: str,
    difference: tuple[float, float, float],
    *,
    p: float = 0.0004,
    wins: float | None = None,
    model: str = "dpo",
    against: str = "base",
    category: str | None = None,
    own: float = 1.0,
) -> Comparison:
    rate = wins if wins is not None else 0.5 + difference[0] / 2
    return Comparison(
        model, against, measure, category, 57, Interval(own, own - 0.1, own + 0.1),
        against_mean=Interval(own - difference[0], 0.0, 2.0), difference=Interval(*difference),
        win_rate=Interval(rate, rate - 0.1, rate + 0.1), adjusted_p=None if category else p,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("difference", "p", "wins", "standing"),
    [
        (UP, 0.049, 0.6, Standing.HIGHER),
        (DOWN, 0.049, 0.4, Standing.LOWER),
        (UP, 0.05, 0.6, Standing.UNSURE),
        (DOWN, 0.05, 0.4, Standing.UNSURE),
        (FLAT, 0.001, 0.9, Standing.UNKNOWN),
        ((0.2, 0.0, 0.4), 0.001, 0.9, Standing.UNKNOWN),
        (UP, 0.001, 0.3, Standing.DIVIDED),
        (DOWN, 0.001, 0.7, Standing.DIVIDED),
    ],
)
def test_a_difference_needs_interval_test_and_direction(
    difference: tuple[float, float, float], p: float, wins: float, standing: Standing
) -> None:
    rate = Interval(wins, wins - 0.1, wins + 0.1)
    assert Difference("Taste", Interval(*difference), rate, p).standing is standing


def test_verdict_first_by_how_much_and_with_what_right() -> None:
    found = [
        compared("Fidelity", DOWN),
        compared("Taste", UP),
        compared("Recognition", FLAT, p=1.0),
        compared("Sharpness", UP, p=0.21),
        compared("Spelling", UP, wins=0.2),
        compared("Taste", DOWN, category="Animals"),
    ]
    assert said_of([BASE, DPO], found) == (
        "dpo is better than base on Taste (+0.300 [0.200, 0.400], p < 0.001, wins 65.0 %).",
        "dpo is worse than base on Fidelity (-0.300 [-0.400, -0.200], p < 0.001, wins 35.0 %).",
        "dpo and base are divided, mean and most pictures disagree, on Spelling (+0.300 [0.200, 0.400], "
        "p < 0.001, wins 20.0 %).",
        "Not significant after correction: dpo against base on Sharpness (+0.300 [0.200, 0.400], p = 0.210, "
        "wins 65.0 %).",
        "Cannot tell dpo from base on Recognition (+0.100 [-0.100, 0.300], p = 1.000, wins 55.0 %).",
        "Paired by prompt and seed; 95 % intervals over 57 prompts; p of a sign test over prompts, corrected "
        "by Holm's method for the number of comparisons, 5.",
    )


def test_a_loss_that_is_not_certain_is_not_passed_over() -> None:
    trained = DPO._replace(trained_on=("Taste",))
    found = [compared("Taste", UP), compared("Fidelity", DOWN, p=0.3), compared("Recognition", UP)]
    sign = "A sign of over-optimisation: dpo gains on Taste, which training saw, and on "
    assert f"{sign}Recognition, which it did not; it may lose on Fidelity." in said_of([BASE, trained], found)
    assert f"{sign}no other for certain: Fidelity; it may lose on Fidelity." in said_of(
        [BASE, trained], found[:2]
    )


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (
            {"Taste": UP, "Fidelity": DOWN, "Recognition": UP},
            "Over-optimised: dpo gains on Taste, which training saw, and loses on Fidelity, which it did "
            "not; it gains on Recognition.",
        ),
        (
            {"Taste": UP, "Fidelity": FLAT, "Recognition": FLAT},
            "A sign of over-optimisation: dpo gains on Taste, which training saw, and on no other for "
            "certain: Fidelity and Recognition.",
        ),
        (
            {"Taste": UP, "Fidelity": FLAT, "Recognition": UP},
            "No sign of over-optimisation: dpo gains on Taste, which training saw, and on Recognition, which "
            "it did not.",
        ),
        (
            {"Taste": UP},
            "dpo was trained on every reward that judged it: whether it over-optimises cannot be seen; add a "
            "reward that training never saw.",
        ),
        ({"Taste": FLAT, "Fidelity": DOWN}, None),
    ],
)
def test_the_reward_trained_on_against_those_never_seen(
    figures: Mapping[str, tuple[float, float, float]], said: str | None
) -> None:
    trained = DPO._replace(trained_on=("Taste", "Another"))
    found = said_of([BASE, trained], [compared(*figure) for figure in figures.items()])
    flags = [sentence for sentence in found if "optimis" in sentence]
    assert flags == ([] if said is None else [said])


def test_nothing_is_known_of_a_training_that_names_no_reward() -> None:
    found = said_of([BASE, DPO], [compared("Taste", UP), compared("Fidelity", DOWN)])
    assert not [sentence for sentence in found if "optimis" in sentence]


MOVED = Comparison("dpo", "base", "displacement", None, 57, Interval(0.21, 0.19, 0.23))


@pytest.mark.parametrize(
    ("taste", "spread", "said"),
    [
        (
            UP,
            DOWN,
            "dpo gained 0.300 on Taste, at 30.0 % less diversity (-0.300 [-0.400, -0.200], p < 0.001)",
        ),
        (UP, UP, "dpo gained 0.300 on Taste, at 30.0 % more diversity (+0.300 [0.200, 0.400], p < 0.001)"),
        (DOWN, DOWN, "dpo gained nothing for certain, at 30.0 % less diversity (-0.300 [-0.400, -0.200]"),
        (UP, FLAT, "dpo gained 0.300 on Taste, at a diversity that cannot be told from that of base (+0.100"),
    ],
)
def test_what_a_gain_costs(
    taste: tuple[float, float, float], spread: tuple[float, float, float], said: str
) -> None:
    """The base's diversity is 1."""
    found = [compared("Taste", taste), compared("diversity", spread, own=1 + spread[0]), MOVED]
    (cost,) = [sentence for sentence in said_of([BASE, DPO], found) if sentence.startswith(said)]
    assert cost.endswith(") and a displacement of 0.210 [0.190, 0.230] from base.")


def test_one_picture_of_a_prompt_tells_of_displacement_alone() -> None:
    assert (
        "dpo gained 0.300 on Taste, at a displacement of 0.210 [0.190, 0.230] from base; diversity needs two "
        "seeds."
    ) in said_of([BASE, DPO], [compared("Taste", UP), MOVED])


def test_the_highest_of_several_models() -> None:
    """Means are 1 (base), 1.3, 1 and 1.2. Pairs were compared the other way round: signs and wins turn."""
    found = [
        compared("Taste", UP, own=1.3),
        compared("Taste", (0.0, -0.1, 0.1), model="sft", own=1.0),
        compared("Taste", DOWN, model="sft", against="dpo", own=1.0),
        compared("Taste", (0.2, 0.1, 0.3), model="spin", own=1.2),
        compared("Taste", (-0.1, -0.3, 0.1), model="spin", against="dpo", own=1.2),
        compared("Taste", (0.2, 0.1, 0.3), model="spin", against="sft", own=1.2),
    ]
    models = [BASE, DPO, Evaluated("sft", ""), Evaluated("spin", "")]
    assert (
        "Of these models dpo is highest on Taste: ahead of sft (+0.300 [0.200, 0.400], p < 0.001); not for "
        "certain ahead of spin (+0.100 [-0.100, 0.300], p < 0.001)."
    ) in said_of(models, found)


def evaluated(gains: Mapping[str, Mapping[str, float]], num_prompts: int = 200) -> Results:
    """Scores of four pictures of every prompt, each model a shift above the prompt's own."""
    generator = np.random.default_rng(0)
    own = generator.normal(size=(num_prompts, 1))
    scores = {
        name: Scores(
            {r: own + gain + 0.5 * generator.normal(size=(num_prompts, 4)) for r, gain in of.items()}
        )
        for name, of in gains.items()
    }
    return Results(tuple(Prompt(str(i)) for i in range(num_prompts)), (0, 1, 2, 3), scores)


CHECKPOINTS = tuple(
    Evaluated(f"dpo@{step}", f"runs/dpo@{step}", "runs/dpo", step, ("Taste",))
    for step in (100, 200, 300, 400)
)


def test_checkpoints_past_their_best() -> None:
    """Fidelity is highest at step 200, Recognition goes on; the models are given out of order."""
    shifts = {100: (0.2, 0.3, 0.1), 200: (0.4, 0.6, 0.2), 300: (0.6, 0.3, 0.3), 400: (0.8, 0.0, 0.4)}
    gains = {"base": {"Taste": 0.0, "Fidelity": 0.0, "Recognition": 0.0}}
    models = (CHECKPOINTS[3], *CHECKPOINTS[:3])
    for model in models:
        gains[model.name] = dict(zip(gains["base"], shifts[model.step], strict=True))
    found = said_of([BASE, *models], comparisons(evaluated(gains), [BASE, *models]))
    (peaked,) = [sentence for sentence in found if "peaks at" in sentence]
    number = r"[-+]\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\], p < 0\.001"
    assert re.fullmatch(
        r"runs/dpo, steps 100 to 400: Fidelity, which training never saw, peaks at step 200 and is worse "
        rf"from step 300 on, at the last one by {number}, while Taste, trained on, rises \({number}\)\.",
        peaked,
    )
    assert (
        "runs/dpo, steps 100 to 400: no fall from a peak that is significant on Recognition (highest at step "
        "400)."
    ) in found
    # of the series the last one speaks
    assert [sentence for sentence in found if sentence.startswith("dpo@400 is better than base on Taste (")]
    assert not [sentence for sentence in found if re.match(r"dpo@[123]00 ", sentence)]


@pytest.mark.parametrize(
    ("shifts", "said"),
    [
        ((0.6, 0.2, 0.2, 0.6), "no fall from a peak that is significant on Fidelity (highest at step "),
        ((0.6, 0.2, 0.6, 0.2), "peaks at step 100 and is worse from step 400 on"),
        ((0.6, 0.2, 0.2, 0.2), "peaks at step 100 and is worse from step 200 on"),
        ((0.2, 0.2, 0.2, 0.6), "no fall from a peak that is significant on Fidelity (highest at step 400)"),
    ],
)
def test_a_fall_is_one_that_lasts(shifts: Sequence[float], said: str) -> None:
    gains = {"base": {"Fidelity": 0.0}}
    for model, shift in zip(CHECKPOINTS, shifts, strict=True):
        gains[model.name] = {"Fidelity": shift}
    models = [BASE, *CHECKPOINTS]
    found = said_of(models, comparisons(evaluated(gains), models))
    assert [sentence for sentence in found if said in sentence]


def test_too_few_prompts_are_said_to_be() -> None:
    """Five prompts have p of 1/16 at best, seven 1/64: four comparisons make 1/16 of it."""
    few = evaluated({"base": {"Taste": 0.0}, "dpo": {"Taste": 3.0}}, num_prompts=5)
    said = "With 5 prompts no test can be significant after correction: use more prompts."
    assert said_of([BASE, DPO], comparisons(few, [BASE, DPO]))[-1] == said
    enough = evaluated({"base": {"Taste": 0.0}, "dpo": {"Taste": 3.0}}, num_prompts=6)
    assert said_of([BASE, DPO], comparisons(enough, [BASE, DPO]))[0].startswith("dpo is better than base")
    rewards = ("A", "B", "C", "D")
    many = evaluated({"base": dict.fromkeys(rewards, 0.0), "dpo": dict.fromkeys(rewards, 3.0)}, num_prompts=7)
    assert said_of([BASE, DPO], comparisons(many, [BASE, DPO]))[-1] == said.replace("5", "7")


def test_a_model_against_itself_with_other_seeds_cannot_be_told() -> None:
    results = evaluated({"base": {"Taste": 0.0, "Fidelity": 0.0}, "dpo": {"Taste": 0.0, "Fidelity": 0.0}})
    (first, *_) = said_of([BASE, DPO], comparisons(results, [BASE, DPO]))
    assert first.startswith("Cannot tell dpo from base on Taste (")


def test_nothing_compared_is_nothing_said() -> None:
    assert said_of([BASE], ()) == ()
