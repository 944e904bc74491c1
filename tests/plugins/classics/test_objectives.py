"""The components: settings, logs and errors. Their math is tested in test_functional.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import alignkit_classics.kto
from alignkit.components import Objective
from alignkit.functional import preference_logit
from alignkit.types import Batch, Loss, Noised, Scored
from alignkit_classics.functional import (
    conservative_dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    mapo_logit,
    mapo_loss,
    robust_dpo_loss,
    sft_loss,
    unpaired_kto_loss,
)
from alignkit_classics.kto import KTO, UnpairedKTO
from alignkit_classics.noisy_labels import ConservativeDPO, RobustDPO
from alignkit_classics.pairwise import IPO, HingeDPO
from alignkit_classics.reference_free import SFT, MaPO

LOGP_KB = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0]])
REF_LOGP_KB = torch.tensor([[-2.0, -2.0, -2.0], [-2.0, -2.0, -2.0]])
LABEL_B = torch.tensor([1.0, 0.0, 1.0])

AGAINST_A_REFERENCE = [
    HingeDPO(beta=2.0),
    ConservativeDPO(beta=2.0),
    RobustDPO(beta=2.0),
    IPO(tau=1.0),
    KTO(beta=2.0),
    UnpairedKTO(beta=2.0),
]
ALL = [*AGAINST_A_REFERENCE, SFT(), MaPO()]


def named(objective: Objective) -> str:
    return type(objective).__name__


def batch(label_B: Tensor | None = None) -> Batch:
    id_B = torch.arange(3)
    return Batch(torch.zeros(2, 3, 3, 4, 4), ("a", "b", "c"), id_B, id_B, label_B=label_B)


def scored(**fields: Tensor) -> Scored:
    return Scored(Noised(*torch.zeros(3, 2, 3, 1, 1, 1)), **fields)


def called(objective: Objective, logp_KB: Tensor = LOGP_KB, ref_logp_KB: Tensor = REF_LOGP_KB) -> Loss:
    """The objective, given what a batch of its own ``reads`` holds: the first row where that is one image."""
    rows = 2 if objective.reads == "pair" else 1
    label_B = LABEL_B if objective.reads == "either" else None
    found: Loss = objective(scored(logp_KB=logp_KB[:rows], ref_logp_KB=ref_logp_KB[:rows]), batch(label_B))
    return found


@pytest.mark.parametrize(
    ("objective", "expected_B"),
    [
        (HingeDPO(beta=3.0), hinge_loss(LOGP_KB, REF_LOGP_KB, beta=3.0)),
        (
            ConservativeDPO(beta=3.0, flip_rate=0.2),
            conservative_dpo_loss(LOGP_KB, REF_LOGP_KB, beta=3.0, flip_rate=0.2),
        ),
        (RobustDPO(beta=3.0, flip_rate=0.2), robust_dpo_loss(LOGP_KB, REF_LOGP_KB, beta=3.0, flip_rate=0.2)),
        (IPO(tau=3.0), ipo_loss(LOGP_KB, REF_LOGP_KB, tau=3.0)),
        (
            KTO(beta=3.0, desirable_weight=1.6, undesirable_weight=0.4),
            kto_loss(LOGP_KB, REF_LOGP_KB, beta=3.0, desirable_weight=1.6, undesirable_weight=0.4),
        ),
        (
            UnpairedKTO(beta=3.0, desirable_weight=1.6, undesirable_weight=0.4),
            unpaired_kto_loss(
                LOGP_KB[0],
                REF_LOGP_KB[0],
                LABEL_B,
                beta=3.0,
                desirable_weight=1.6,
                undesirable_weight=0.4,
            ),
        ),
        (SFT(), sft_loss(LOGP_KB)),
        (
            MaPO(beta=0.2, snr=0.3, num_timesteps=10),
            mapo_loss(LOGP_KB, beta=0.2, snr=0.3, num_timesteps=10),
        ),
    ],
    ids=lambda value: named(value) if isinstance(value, Objective) else "",
)
def test_loss_is_the_functions_one_per_prompt(objective: Objective, expected_B: Tensor):
    assert_close(called(objective).loss_B, expected_B, rtol=0, atol=0)


# --- logs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "gradient"),
    [
        (HingeDPO(beta=2.0), 2 / 3),
        (ConservativeDPO(beta=2.0), [abs(1 / (1 + math.exp(-u)) - 0.9) for u in (1, 0, -2)]),
        (RobustDPO(beta=2.0), [1 / (1 + math.exp(u)) + 0.125 for u in (1, 0, -2)]),
    ],
    ids=lambda value: named(value) if isinstance(value, Objective) else "",
)
def test_pairwise_logs_say_what_moved(objective: Objective, gradient: Any):
    """Gains are (1, 0, -1) on winners and (0, 0, 1) on losers, logits (1, 0, -2): right, tied and wrong."""
    expected = {
        "rewards/chosen": 0.0,
        "rewards/rejected": 1 / 3,
        "rewards/margins": -1 / 3,
        "rewards/accuracies": 0.5,
        "logit/scale": 1.0,
        "logit/gradient": sum(gradient) / 3 if isinstance(gradient, list) else gradient,
    }
    found = {name: value.item() for name, value in called(objective).logs.items()}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_ipo_logs_rewards_of_which_the_target_is_one_half():
    """Margins are tau h: at h = 1 / (2 tau) they are 1/2."""
    logp_KB = torch.tensor([[-1.99] * 3, [-2.0] * 3])
    logs = called(IPO(tau=50.0), logp_KB).logs
    assert_close(logs["rewards/margins"], torch.tensor(0.5), rtol=1e-4, atol=0)
    assert_close(logs["rewards/chosen"], torch.tensor(0.5), rtol=1e-4, atol=0)


def test_kto_logs_its_baseline():
    """Gains (1, 0, -1) and (0, 0, 1) at beta = 6: their mean is 1/6 * 3 = 0.5."""
    logs = called(KTO(beta=6.0)).logs
    assert_close(logs["rewards/baseline"], torch.tensor(0.5))
    assert_close(logs["rewards/accuracies"], torch.tensor(0.5))
    assert_close(logs["rewards/margins"], torch.tensor(-1.0))
    assert_close(logs["logit/scale"], torch.tensor(3.0))  # of 3, 0 and -6


def test_unpaired_kto_logs_likes_and_dislikes_apart():
    """Rewards (1, 0, -1): the liked are the first and the third, their mean 0; the mean of all is 0."""
    logs = called(UnpairedKTO(beta=2.0), LOGP_KB + torch.tensor([[1.0], [0.0]])).logs
    expected = {
        "rewards/chosen": 1.0,
        "rewards/rejected": 1.0,
        "rewards/margins": 0.0,
        "rewards/baseline": 1.0,
        "logit/scale": 2 / 3,
    }
    assert {name: value.item() for name, value in logs.items()} == pytest.approx(expected, abs=1e-6)


def test_unpaired_kto_without_dislikes_logs_finite_numbers():
    sample = scored(logp_KB=LOGP_KB[:1], ref_logp_KB=REF_LOGP_KB[:1])
    for label_B in (torch.ones(3), torch.zeros(3), None):
        loss_B, logs = UnpairedKTO()(sample, batch(label_B))
        assert loss_B.isfinite().all()
        assert all(value.isfinite() for value in logs.values())


@pytest.mark.parametrize(
    ("label_B", "chosen", "rejected"),
    [
        ([1.0, 0.0, 0.0], 2.0, -3.0),
        ([0.0, 1.0, 1.0], -3.0, 2.0),
        ([0.25, 0.0, 0.25], -1.0, -1.2),
    ],
)
def test_unpaired_kto_logs_means_over_all_that_are_liked_alike(
    label_B: list[float], chosen: float, rejected: float
):
    """Rewards (2, 0, -6). Of a batch with less than one like, the share that there is: 0.25 (2 - 6)."""
    logp_KB = REF_LOGP_KB[:1] + torch.tensor([[1.0, 0.0, -3.0]])
    sample = scored(logp_KB=logp_KB, ref_logp_KB=REF_LOGP_KB[:1])
    logs = UnpairedKTO(beta=4.0)(sample, batch(torch.tensor(label_B))).logs
    assert_close(logs["rewards/chosen"], torch.tensor(chosen))
    assert_close(logs["rewards/rejected"], torch.tensor(rejected))
    assert_close(logs["rewards/margins"], torch.tensor(chosen - rejected))


@pytest.mark.parametrize("snr", [0.5, 2.0])
def test_mapo_logs_its_scores(snr: float):
    """Scores of errors (1, 2, 3) and (2, 2, 1): right, tied, wrong."""
    logs = called(MaPO(snr=snr, num_timesteps=10)).logs
    logit_B = mapo_logit(LOGP_KB, snr=snr, num_timesteps=10)
    assert_close(logs["rewards/accuracies"], torch.tensor(0.5))
    assert_close(logs["rewards/margins"], logit_B.mean())
    assert_close(logs["logit/scale"], logit_B.abs().mean())
    assert_close(logs["logit/gradient"], torch.sigmoid(-logit_B).mean())


# --- the contract --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ALL, ids=named)
def test_gradient_reaches_the_policy_and_neither_reference_nor_logs(objective: Objective):
    logp_KB, ref_logp_KB = LOGP_KB.clone().requires_grad_(), REF_LOGP_KB.clone().requires_grad_()
    loss_B, logs = called(objective, logp_KB, ref_logp_KB)
    loss_B.mean().backward()
    assert logp_KB.grad.abs().sum() > 0
    assert ref_logp_KB.grad is None
    assert not any(value.requires_grad for value in logs.values())


@pytest.mark.parametrize("objective", AGAINST_A_REFERENCE, ids=named)
def test_initial_loss_is_what_a_copy_of_the_reference_costs(objective: Objective):
    loss_B, logs = called(objective, LOGP_KB, LOGP_KB)
    assert_close(loss_B, torch.full((3,), objective.initial_loss()), rtol=3e-7, atol=0)
    assert logs["rewards/margins"] == 0


def test_initial_losses_by_hand():
    assert HingeDPO().initial_loss() == 1
    assert ConservativeDPO().initial_loss() == RobustDPO().initial_loss() == math.log(2)
    assert IPO(tau=100.0).initial_loss() == pytest.approx(2.5e-5)
    assert KTO().initial_loss() == UnpairedKTO().initial_loss() == 0.5
    assert KTO(desirable_weight=1.6, undesirable_weight=0.4).initial_loss() == 0.5
    assert UnpairedKTO(desirable_weight=1.6).initial_loss() is None
    assert SFT().initial_loss() is None
    assert MaPO().initial_loss() is None


def test_what_each_reads_and_uses():
    assert {named(objective): objective.reads for objective in ALL if objective.reads != "pair"} == {
        "UnpairedKTO": "either",
        "SFT": "winner",
    }
    assert [named(objective) for objective in ALL if "ref_logp" not in objective.uses] == ["SFT", "MaPO"]


@pytest.mark.parametrize("objective", [SFT(), MaPO()], ids=named)
def test_no_reference_is_needed(objective: Objective):
    loss_B, _ = objective(scored(logp_KB=LOGP_KB), batch())
    assert loss_B.isfinite().all()


@pytest.mark.parametrize("objective", AGAINST_A_REFERENCE, ids=named)
def test_missing_reference_is_named(objective: Objective):
    with pytest.raises(ValueError, match=f"{named(objective)} reads ref_logp"):
        objective(scored(logp_KB=LOGP_KB), batch())


@pytest.mark.parametrize("objective", ALL, ids=named)
def test_missing_policy_is_named(objective: Objective):
    with pytest.raises(ValueError, match=f"{named(objective)} reads logp,"):
        objective(scored(ref_logp_KB=REF_LOGP_KB), batch())


def test_defaults_are_those_of_the_sources():
    assert HingeDPO().beta == ConservativeDPO().beta == RobustDPO().beta == 2000
    assert (KTO().beta, UnpairedKTO().beta) == (2000, 2000)  # 1000 without the factor 1/2
    assert IPO().tau == 1000  # half of Diffusion-DPO's beta
    assert (MaPO().beta, MaPO().snr, MaPO().num_timesteps) == (0.1, 0.5, 1000)


# --- statistics over processes -------------------------------------------------------------------------


def test_kto_baseline_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch):
    """Another process, whose pairs gained 9 and 3 in the mean: (0 + 6) / 2 over both."""
    monkeypatch.setattr(
        alignkit_classics.kto,
        "gathered",
        lambda value_B, equal: torch.cat([value_B, torch.full((3, *value_B.shape[1:]), 6.0)]),
    )
    logp_KB = REF_LOGP_KB + torch.tensor([[1.0], [-1.0]])
    loss_B, logs = called(KTO(beta=2.0), logp_KB)
    assert logs["rewards/baseline"] == 3
    expected_B = kto_loss(logp_KB, REF_LOGP_KB, beta=2.0, baseline=torch.tensor(3.0))
    assert_close(loss_B, expected_B)
    loss_B, logs = called(UnpairedKTO(beta=2.0), logp_KB)
    assert logs["rewards/baseline"] == 3.5
    expected_B = unpaired_kto_loss(logp_KB[0], REF_LOGP_KB[0], LABEL_B, beta=2.0, baseline=torch.tensor(3.5))
    assert_close(loss_B, expected_B)


def test_kto_baseline_is_not_below_zero():
    assert called(KTO(beta=2.0), REF_LOGP_KB - 1.0).logs["rewards/baseline"] == 0


# --- margins of a weighting ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (HingeDPO(beta=2.0), hinge_loss),
        (ConservativeDPO(beta=2.0, flip_rate=0.1), conservative_dpo_loss),
        (RobustDPO(beta=2.0, flip_rate=0.1), robust_dpo_loss),
    ],
    ids=lambda value: named(value) if isinstance(value, Objective) else "",
)
def test_margin_of_a_weighting_is_used_by_loss_and_logs(objective: Objective, loss: Any):
    """A margin of 1 leaves logits of (0, -1, -3); rewards do not change."""
    margin_B = torch.ones(3)
    sample = scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB, margin_B=margin_B)
    loss_B, logs = objective(sample, batch())
    settings = {} if isinstance(objective, HingeDPO) else {"flip_rate": 0.1}
    assert_close(loss_B, loss(LOGP_KB, REF_LOGP_KB, beta=2.0, margin_B=margin_B, **settings), rtol=0, atol=0)
    assert_close(logs["logit/scale"], torch.tensor(4 / 3))
    assert_close(logs["rewards/margins"], torch.tensor(-1 / 3))


def test_margin_of_a_weighting_is_used_by_mapo():
    margin_B = mapo_logit(LOGP_KB)
    loss_B, logs = MaPO()(scored(logp_KB=LOGP_KB, margin_B=margin_B), batch())
    assert_close(loss_B, sft_loss(LOGP_KB) + 0.1 * math.log(2))
    assert logs["logit/scale"] == 0


NO_LOGIT = "has no logit for a weighting's margin to shift; switch the margin off or use a logistic objective"


@pytest.mark.parametrize("objective", [IPO(), KTO(), UnpairedKTO(), SFT()], ids=named)
def test_margin_without_a_logit_is_refused(objective: Objective):
    sample = scored(logp_KB=LOGP_KB, ref_logp_KB=REF_LOGP_KB, margin_B=torch.ones(3))
    with pytest.raises(ValueError, match=f"^{named(objective)}: {NO_LOGIT}$"):
        objective(sample, batch())


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (HingeDPO, "beta"),
        (ConservativeDPO, "beta"),
        (RobustDPO, "beta"),
        (IPO, "tau"),
        (KTO, "beta"),
        (UnpairedKTO, "beta"),
        (MaPO, "snr"),
        (MaPO, "num_timesteps"),
    ],
)
def test_setting_must_be_positive(cls: type[Objective], setting: str, value: float):
    with pytest.raises(ValueError, match=rf"^{cls.__name__}: {setting} must be positive, got {value}$"):
        cls(**{setting: value})


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (KTO, "desirable_weight"),
        (KTO, "undesirable_weight"),
        (UnpairedKTO, "desirable_weight"),
        (UnpairedKTO, "undesirable_weight"),
        (MaPO, "beta"),
    ],
)
def test_factor_must_not_be_negative(cls: type[Objective], setting: str, value: float):
    with pytest.raises(ValueError, match=rf"^{cls.__name__}: {setting} must be at least 0, got {value}$"):
        cls(**{setting: value})


@pytest.mark.parametrize("rate", [-0.1, 0.5, 0.9, math.nan])
@pytest.mark.parametrize("cls", [ConservativeDPO, RobustDPO])
def test_flip_rate_must_be_below_one_half(cls: type[Objective], rate: float):
    with pytest.raises(ValueError, match=rf"^{cls.__name__}: flip_rate must lie in \[0, 0.5\), got {rate}$"):
        cls(flip_rate=rate)


def test_the_ends_of_what_is_allowed():
    """Without preferences, likes or flips."""
    assert MaPO(beta=0.0).beta == KTO(desirable_weight=0.0).desirable_weight == 0
    assert ConservativeDPO(flip_rate=0.0).flip_rate == RobustDPO(flip_rate=0.0).flip_rate == 0
    assert HingeDPO(beta=1e-9).beta == 1e-9


@pytest.mark.parametrize("cls", [HingeDPO, ConservativeDPO, RobustDPO])
def test_losses_of_one_logit_agree_with_the_shared_one(cls: type[Objective]):
    """Their common logit is (beta / 2) times the difference of gains: twice the beta, twice the margins."""
    logit_B = preference_logit(LOGP_KB, REF_LOGP_KB, beta=6.0)
    assert_close(called(cls(beta=6.0)).logs["rewards/margins"], logit_B.mean())
