"""What guards see of a step, and when they take it for a spike or for displacement."""

import json
import math
import statistics
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn, tensor
from torch.nn import functional
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from alignkit.guards import Guards
from alignkit.guards.displacement import Displacement
from alignkit.guards.record import Fact, entry, sentence
from alignkit.guards.spikes import Spikes
from alignkit.guards.updates import OnDevice, OnHost, way
from alignkit.guards.window import CHANGES, Figures, Window
from alignkit.module import AlignModule
from alignkit.rollout import Recipe
from alignkit.rounds import Rounds
from alignkit.testing.toys import ToyBackbone, toy_batch
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise

TAKEN, LEFT_OUT = tensor(True), tensor(False)


def figures(loss: float = 0.0, norm: float = 0.0, changes: tuple[float, ...] = (0.0,) * 4) -> Figures:
    return Figures(tensor(loss), tensor(norm), tensor(changes))


@pytest.mark.parametrize("seen", [4, 7, 8, 30])
def test_what_lies_above_six_deviations_of_the_latest_steps_is_a_spike(seen: int) -> None:
    """Against the standard library's mean and sample deviation of the last 8."""
    drawn = torch.randn(seen, generator=torch.Generator().manual_seed(seen)).tolist()
    spikes = Spikes(window=8, sigmas=6.0)
    for value in drawn:
        spikes.take(figures(value, -value), TAKEN)
    latest = drawn[-8:]
    mean, deviation = statistics.mean(latest), statistics.stdev(latest)
    for sigmas, expected in ((5.99, False), (6.01, True), (-7.0, False)):
        for far in (
            figures(loss=mean + sigmas * deviation, norm=-50.0),
            figures(-50.0, sigmas * deviation - mean),
        ):
            assert spikes.judge(far)[0].item() is expected
    spread = spikes.judge(figures())[1]
    assert spread.mean_2.tolist() == pytest.approx([mean, -mean], abs=1e-6)
    assert spread.std_2.tolist() == pytest.approx([deviation] * 2, rel=1e-5)


def test_nothing_is_a_spike_until_half_of_the_steps_are_there() -> None:
    spikes = Spikes(window=8, sigmas=6.0)
    for value in (0.0, 1.0, 0.0):
        spikes.take(figures(value), TAKEN)
    assert not spikes.judge(figures(1e6))[0]
    spikes.take(figures(1.0), TAKEN)
    assert spikes.judge(figures(1e6))[0]


def test_a_step_that_was_left_out_is_not_among_the_latest() -> None:
    spikes, other = Spikes(4, 6.0), Spikes(4, 6.0)
    for place, value in enumerate((0.0, 1.0, math.nan, 2.0, 1e9, 3.0)):
        taken = place not in (2, 4)
        spikes.take(figures(value), TAKEN if taken else LEFT_OUT)
        if taken:
            other.take(figures(value), TAKEN)
    ours, theirs = spikes.state_dict(), other.state_dict()
    assert torch.equal(ours["latest"], theirs["latest"])
    assert torch.equal(ours["count"], theirs["count"])
    assert ours["latest"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_displacement_counts_steps_with_both_errors_far_above() -> None:
    """Window 1: no averaging. Rises of winner and loser, as a share of errors of 2 and 4."""
    guard = Displacement(window=1, threshold=0.5)
    counts = []
    for winner, loser in ((0.6, 0.6), (0.6, 0.7), (0.4, 3.0), (0.9, 0.6), (-0.1, -0.2)):
        guard.take(figures(changes=(2 * winner, 4 * loser, 2.0, 4.0)), TAKEN)
        assert guard.rise().item() == pytest.approx(min(winner, loser))
        counts.append(guard.steps().item())
    assert counts == [1, 2, 0, 1, 0]


def test_displacement_averages_over_its_window() -> None:
    """(1/4) sum of (3/4)^k over the past, of both errors: the common factor goes in their ratio."""
    guard, past = Displacement(window=4, threshold=1.0), []
    for step in range(6):
        change, reference = 0.3 * step, 1.0 + step
        past.append((change, reference))
        guard.take(figures(changes=(change, change, reference, reference)), TAKEN)
        factors = [0.75**age for age in range(len(past))][::-1]
        expected = [
            sum(factor * pair[side] for factor, pair in zip(factors, past, strict=True)) for side in (0, 1)
        ]
        assert guard.rise().item() == pytest.approx(expected[0] / expected[1], rel=1e-5)


def test_displacement_does_not_look_at_steps_that_were_left_out_or_have_no_numbers() -> None:
    guard = Displacement(window=2, threshold=0.5)
    guard.take(figures(changes=(3.0, 3.0, 1.0, 1.0)), TAKEN)
    before = guard.state_dict()
    guard.take(figures(changes=(0.0, 0.0, 1.0, 1.0)), LEFT_OUT)
    guard.take(figures(changes=(math.nan, 0.0, 1.0, 1.0)), TAKEN)
    assert all(torch.equal(value, before[name]) for name, value in guard.state_dict().items())


def test_a_window_is_the_mean_of_its_micro_batches_and_begins_anew() -> None:
    window = Window()
    for loss in (1.0, 4.0):
        window.add(toy_batch(2), {"trained": tensor(loss), CHANGES[0]: tensor(2 * loss)})
    seen, batches = window.close(tensor(7.0))
    assert (seen.loss.item(), seen.norm.item(), seen.change_4[0].item()) == (2.5, 7.0, 5.0)
    assert seen.change_4[1:].isnan().all()
    assert [batch.loss.item() for batch in batches] == [1.0, 4.0]
    assert window.batches == []


def test_a_window_goes_on_where_it_was_saved() -> None:
    """In the middle of an accumulation: what is seen at its end is the same."""
    straight, first, second = Window(), Window(), Window()
    parts = [{"trained": tensor(value), **dict.fromkeys(CHANGES, tensor(value))} for value in (0.1, 0.7, 0.4)]
    for place, seen in enumerate(parts):
        straight.add(toy_batch(2, visit=place), seen)
        if place < 2:
            first.add(toy_batch(2, visit=place), seen)
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    second.add(toy_batch(2, visit=2), parts[2])
    (ours, mine), (theirs, other) = second.close(tensor(1.0)), straight.close(tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [(b.id_B.tolist(), b.prompts, b.loss.item()) for b in mine] == [
        (b.id_B.tolist(), b.prompts, b.loss.item()) for b in other
    ]


class Plain:
    """A trainer without loss scaling."""

    precision_plugin = None


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        (AdamW, {"fused": True}, OnDevice),
        (AdamW, {"fused": False}, OnHost),
        (Adagrad, {"fused": True}, OnDevice),
        (SGD, {"fused": True, "lr": 0.1}, OnDevice),
        (SGD, {"fused": True, "lr": 0.1, "momentum": 0.9}, OnHost),
    ],
)
def test_each_optimizer_leaves_out_an_update_exactly(
    optimizer: type[Optimizer], options: dict[str, Any], expected: type
) -> None:
    """Three steps, the first and third of which are left out, against one step alone; with weight decay."""
    torch.manual_seed(0)
    start, data = nn.Linear(3, 2).state_dict(), torch.randn(5, 3)
    left = []
    for skips in ((True, False, True), (False,)):
        network = nn.Linear(3, 2)
        network.load_state_dict(start)
        steps = optimizer(network.parameters(), weight_decay=0.1, **options)  # type: ignore[call-arg]
        leave_out = way(Plain(), steps)  # type: ignore[arg-type]
        assert isinstance(leave_out, expected)
        for skip in skips:
            steps.zero_grad()
            functional.mse_loss(network(data), data[:, :2]).backward()
            if skip:
                for weight in network.parameters():
                    assert weight.grad is not None
                    weight.grad.fill_(torch.nan)
            leave_out(steps, tensor(skip))
            steps.step()
        left.append((network, steps.state_dict()["state"]))
    (ours, our_state), (theirs, their_state) = left
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not torch.equal(ours.weight, start["weight"])
    for number, values in their_state.items():
        for name, value in values.items():
            assert value is our_state[number][name] or torch.equal(our_state[number][name], value), name


def test_a_line_of_the_file_is_json_and_names_what_is_no_number() -> None:
    fact = Fact(True, False, True, math.nan, math.inf, 0.7, 1.0, 0.1, 0.2)
    sample = {"micro_batch": 1, "loss": "nan", "finite": False, "ids": [5], "prompts": ["a cat"]}
    line = entry(3, fact, [[{**sample, "finite": True, "ids": [4]}], [sample]])
    told = json.loads(json.dumps(line, allow_nan=False))
    assert (told["loss"], told["grad_norm"]) == ("nan", "inf")
    assert [batch["rank"] for batch in told["samples"]] == [0, 1]
    assert sentence(fact, line) == (
        "step 3: loss nan, gradient norm inf: not finite; its update was left out; samples 5 (micro-batch 1 "
        "of process 1), with them 4"
    )


def test_a_spike_is_told_with_what_was_before() -> None:
    fact = Fact(False, True, False, 9.0, 1.0, 0.7, 1.0, 0.1, 0.2)
    line = entry(8, fact, [[{"micro_batch": 1, "loss": 9.0, "finite": True, "ids": [5, 6], "prompts": []}]])
    assert sentence(fact, line) == (
        "step 8: loss 9, gradient norm 1: a spike, the steps before had 0.7 +- 0.1 and 1 +- 0.2; its update "
        "was made; samples 5, 6"
    )


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_skipped", 0, r"Guards: max_skipped must be at least 1, got 0"),
        ("spike_window", 1, r"Guards: spike_window must be at least 2, got 1"),
        ("spike_sigmas", 0.0, r"Guards: spike_sigmas must be positive, got 0\.0"),
        ("displacement_threshold", math.nan, r"Guards: displacement_threshold must be positive, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guards(**{setting: value})  # type: ignore[arg-type]


def test_a_round_begins_with_statistics_of_its_own() -> None:
    """Its reference is another one: losses begin anew at log 2, and errors at those of the policy."""
    rounds = Rounds("SelfPlay", 2, Recipe())
    guards, module = (
        Guards(displacement_window=1),
        AlignModule(DiffusionDPO(), SharedNoise(), ToyBackbone(), SGD),
    )
    module.seen = {name: tensor(1.0) for name in ("trained", *CHANGES)}
    trainer = Mock(callbacks=[rounds], global_rank=0, precision_plugin=None, default_root_dir=".")
    guards.setup(trainer, module, "fit")
    guards.on_fit_start(trainer, module)
    guards._spikes.take(figures(1.0), TAKEN)
    guards._displacement.take(figures(changes=(1.0,) * 4), TAKEN)
    for number, expected in ((0, 1), (1, 0)):
        rounds.round = number
        guards.on_before_backward(trainer, module, tensor(0.0))
        assert guards._spikes.state_dict()["count"].item() == expected
        assert guards._displacement.state_dict()["average"].tolist() == [expected] * 4


def test_rounds_cannot_be_rolled_back() -> None:
    trainer = Mock(callbacks=[Rounds("SelfPlay", 2, Recipe())], precision_plugin=None)
    with pytest.raises(ValueError, match=r"guards\.displacement: roll_back does not go with training"):
        Guards(displacement="roll_back").setup(trainer, Mock(), "fit")


def test_loss_scaling_skips_by_itself() -> None:
    with pytest.raises(ValueError, match=r"guards\.spikes: skip does not go with .* 16-mixed"):
        Guards(spikes="skip").setup(Mock(), Mock(), "fit")
