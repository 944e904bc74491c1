"""The claims bench: its rules, that it goes on where it was stopped, and that protocols stay as committed."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import arms
import numpy as np
import page
import pytest
import run
from arms import SEEDS, TUNING_SEED, Arm, Outcome, Runs, outcome, path_of
from choice import Figures, most_diverse, most_useful
from f_inversion import NEVER, reached
from intervals import FAILS, HOLDS, UNDECIDED, Condition, interval, together
from registry import CLAIMS

from alignkit.evaluation.statistics.bootstrap import Interval

MEASURES = {
    "MajorityTaste": 0.0,
    "MinorityTaste": 0.0,
    "EmojiFidelity": 77.0,
    "EmojiRecognition": 0.6,
    "diversity": 0.23,
    "displacement": 0.0,
}
AUDIENCES = ("minority", "mix 0.25", "mix 0.5", "mix 0.75", "majority", "nobody")
PROTOCOLS = Path(__file__).parent / "claims_protocols.json"


@dataclass
class Bench:
    """Simulated results in a folder of their own."""

    folder: Path
    generator: np.random.Generator

    def write(self, arm: Arm, seed: int) -> None:
        audiences = ("",) if arm.config == "base.yaml" else AUDIENCES
        entries = [
            {
                "step": step,
                "audience": audience,
                "scores": {
                    name: (level + step / 1000 + 0.1 * self.generator.normal(size=57)).tolist()
                    for name, level in MEASURES.items()
                },
            }
            for step in arm.steps
            for audience in audiences
        ]
        content = {"identity": arm.identity(), "seed": seed, "commit": "abc", "seconds": {"train": 1.0}}
        path_of(arm, seed).write_text(json.dumps(content | {"evaluations": entries}))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    for module in (arms, page):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return Bench(tmp_path, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("low", "high", "smallest", "verdict"),
    [
        (0.01, 0.3, 0.05, HOLDS),
        (-0.1, 0.04, 0.05, FAILS),
        (-0.1, 0.2, 0.05, UNDECIDED),
        (0.001, 0.04, 0.05, HOLDS),
    ],
)
def test_condition_is_judged_by_its_interval(low, high, smallest, verdict):
    assert Condition("x", Interval((low + high) / 2, low, high), smallest).verdict == verdict


def test_claim_needs_all_its_conditions():
    holds, fails, open_ = (
        Condition("x", Interval(0, low, high), 0.05) for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))
    )
    assert together([holds, holds]) == HOLDS
    assert together([holds, open_]) == UNDECIDED
    assert together([holds, open_, fails]) == FAILS


def test_interval_over_seeds_and_prompts_covers_at_least_its_level():
    """Effects of seeds, of prompts and of both: 95 % intervals that err on the wide side."""
    generator, covered = np.random.default_rng(1), 0
    for _ in range(200):
        seed_S1, prompt_P = generator.normal(size=(5, 1)), generator.normal(size=57)
        found = interval(0.05 * seed_S1 + 0.5 * prompt_P + 0.5 * generator.normal(size=(5, 57)))
        covered += found.low <= 0 <= found.high
    assert covered / 200 >= 0.92


def test_interval_of_equal_values_is_a_point():
    assert interval(np.full((5, 57), 0.25)) == (0.25, 0.25, 0.25)


def test_step_is_read_off_between_judgements():
    """Curves at 25, 50, 75, 100 and 150 steps, from (0, 0)."""
    gain_RL = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.0, 0.0, 0.0, 0.4], [0.0, 0.1, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(reached(gain_RL, 0.2), [50.0, 125.0, NEVER])
    np.testing.assert_allclose(reached(gain_RL[:1], 0.05), [12.5])


def test_first_time_counts_where_a_curve_falls_again():
    np.testing.assert_allclose(reached(np.array([[0.4, 0.0, 0.4, 0.4, 0.4]]), 0.2), [12.5])


def test_choice_keeps_fidelity_and_then_takes_the_gain():
    table = {"1": Figures(0.5, 0.96, 0.1), "2": Figures(0.4, 0.97, 0.1), "3": Figures(0.3, 1.0, 0.1)}
    assert most_useful(table) == "2"
    assert most_useful({"1": table["1"], "4": Figures(0.9, 0.9, 0.1)}) == "1"


def test_entropy_is_chosen_by_diversity_among_those_that_keep_the_gain():
    table = {
        "0": Figures(0.5, 1.0, 0.1),
        "0.01": Figures(0.48, 1.0, 0.12),
        "0.1": Figures(0.46, 1.0, 0.15),
        "0.3": Figures(0.2, 1.0, 0.3),
    }
    assert most_diverse(table) == "0.1"
    assert most_diverse({"0": table["0"], "0.1": table["0.3"], "0.3": table["0.3"]}) == "0.1"


def test_tables_pair_seeds_and_prompts_with_the_base():
    def outcome_of(value: float) -> Outcome:
        return Outcome({(0, ""): {"u": np.array([value, value + 1])}}, {})

    runs = Runs(
        {
            "base": {0: outcome_of(1.0), 1: outcome_of(2.0)},
            "x": {1: outcome_of(2.5), 0: outcome_of(1.25)},
        }
    )
    np.testing.assert_allclose(runs.gain("x", "u"), [[0.25, 0.25], [0.5, 0.5]])


def test_bench_goes_on_until_every_claim_has_its_verdict(bench):
    """First what chooses settings, then what follows from it; a result that is there is not run again."""
    rounds = 0
    while todo := run.missing(run.wanted(CLAIMS)):
        rounds += 1
        if rounds == 1:
            assert {seed for arm, seed in todo if arm.name != "base"} == {TUNING_SEED}
        for arm, seed in todo:
            assert outcome(arm, seed) is None
            bench.write(arm, seed)
    assert 1 < rounds < 6
    text = page.page()
    assert "not yet run" not in text
    assert text.count("Verdict: **") == len(CLAIMS)
    reported = [arm for claim in CLAIMS for arm in claim.arms()]
    assert all(path_of(arm, seed).exists() for arm in reported for seed in SEEDS)


def test_result_of_other_settings_is_refused(bench):
    bench.write(Arm("dpo_500", {"objective.beta": 500}), 0)
    assert outcome(Arm("dpo_500", {"objective.beta": 500}), 0) is not None
    with pytest.raises(ValueError, match=r"was made with .* remove it to run it again"):
        outcome(Arm("dpo_500", {"objective.beta": 250}), 0)


def test_two_arms_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two arms are called x"):
        run.missing([(Arm("x"), 0), (Arm("x", {"a": 1}), 0)])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.letter)
def test_protocol_is_the_one_that_was_committed_before_the_runs(claim):
    committed = json.loads(PROTOCOLS.read_text())
    assert hashlib.sha256(claim.protocol.encode()).hexdigest() == committed[claim.letter]


def test_page_is_what_the_results_give():
    assert (page.HERE / "README.md").read_text(encoding="utf-8") == page.page()
