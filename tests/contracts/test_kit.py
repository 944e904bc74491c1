"""The kit itself: every contract can fail, toys work in a step, slopes are right."""

import ast
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from alignkit import Batch, Loss, Objective, PairRecord, Reward, Sampler, Scored, Weighting, Weights
from alignkit.data.dataset import PairDataset, collate
from alignkit.distributed import gathered
from alignkit.functional import bradley_terry_nll, preference_logit
from alignkit.module import AlignModule
from alignkit.testing import (
    ToyBackbone,
    ToyNetwork,
    ToyPairs,
    assert_slopes,
    central_differences,
    toy_batch,
    toy_scored,
)
from alignkit.testing.contracts import backbones, building, judges, objectives, samplers, sources, weightings
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise

ROOT = Path(__file__).parents[2]


class Right(Objective):
    """Logistic loss; what follows breaks one promise each."""

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def logit(self, scored: Scored) -> Tensor:
        name = type(self).__name__
        if scored.logp_KB is None:
            raise ValueError(f"{name} reads logp, which was not computed")
        if scored.ref_logp_KB is None:
            raise ValueError(f"{name} reads ref_logp, which was not computed")
        ref_logp_KB = scored.ref_logp_KB.detach()
        return preference_logit(scored.logp_KB, ref_logp_KB, beta=2000.0, margin_B=scored.margin_B)

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logit_B = self.logit(scored)
        margin_B = self.logit(scored._replace(margin_B=None)).detach()
        return Loss(bradley_terry_nll(logit_B), {"rewards/margins": margin_B.mean()})

    def initial_loss(self) -> float | None:
        return math.log(2)


class BatchMean(Right):
    """The defect of two published scripts: the mean of logits is taken before their loss."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        return Loss(bradley_terry_nll(self.logit(scored).mean()).expand(len(batch.prompts)))


class WrongSign(Right):
    """Prefers the loser."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        return Loss(bradley_terry_nll(-self.logit(scored)))


class Reduced(Right):
    """One number for the batch."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        return Loss(bradley_terry_nll(self.logit(scored)).mean())


class LogsWithGradient(Right):
    """Keeps the graph alive in what is logged."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        loss_B = bradley_terry_nll(self.logit(scored))
        return Loss(loss_B, {"loss/mean": loss_B.mean()})


class ReferenceWithGradient(Right):
    """Follows the reference."""

    def logit(self, scored: Scored) -> Tensor:
        assert scored.logp_KB is not None
        assert scored.ref_logp_KB is not None
        return preference_logit(scored.logp_KB, scored.ref_logp_KB, beta=2000.0)


class NamesTooMuch(Right):
    """Never looks at the reference that it asks for."""

    def logit(self, scored: Scored) -> Tensor:
        assert scored.logp_KB is not None
        return 1000 * (scored.logp_KB[0] - scored.logp_KB[1])


class NamesTooLittle(Right):
    """Looks at a reference that it does not ask for."""

    uses: ClassVar[frozenset[str]] = frozenset({"logp"})


class OtherStart(Right):
    """Says another first loss than it has."""

    def initial_loss(self) -> float | None:
        return 0.5


class IgnoresMargins(Right):
    """Leaves a weighting's margin out."""

    def logit(self, scored: Scored) -> Tensor:
        return super().logit(scored._replace(margin_B=None))


class FixedMargin(Right):
    """Logs a margin that is none."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        return Loss(bradley_terry_nll(self.logit(scored)), {"rewards/margins": torch.tensor(0.3)})


class WritesIntoItsInput(Right):
    """Changes what others read."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        assert scored.ref_logp_KB is not None
        loss = super().forward(scored, batch)
        with torch.no_grad():
            scored.ref_logp_KB.add_(1)
        return loss


class ByPlace(Right):
    """Weighs prompts by where they stand."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        return Loss(bradley_terry_nll(self.logit(scored)) * torch.arange(1, len(batch.prompts) + 1))


class AgainstNeighbours(Right):
    """A statistic over the prompts of one process."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logit_B = self.logit(scored)
        return Loss(torch.sigmoid(logit_B.detach().mean() - logit_B))


class AgainstAll(Right):
    """The same statistic over those of all processes."""

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logit_B = self.logit(scored)
        return Loss(torch.sigmoid(gathered(logit_B).mean() - logit_B))


QUESTIONS = [getattr(objectives, name) for name in objectives.__all__]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_a_right_objective_keeps_every_contract(question: Callable[[Objective], None]) -> None:
    question(Right())


def test_a_statistic_over_prompts_is_asked_for_from_all_processes() -> None:
    """The same loss breaks its contract where the statistic is of this process alone."""
    objectives.test_objective_keeps_prompts_apart(AgainstAll())
    objectives.test_objective_follows_the_order_of_prompts(AgainstAll())
    with pytest.raises(AssertionError):
        objectives.test_objective_keeps_prompts_apart(AgainstNeighbours())


@pytest.mark.parametrize(
    ("objective", "broken"),
    [
        (BatchMean(), "keeps_prompts_apart"),
        (ByPlace(), "follows_the_order"),
        (WrongSign(), "falls_as_the_winner"),
        (Reduced(), "gives_one_finite_loss"),
        (LogsWithGradient(), "gives_one_finite_loss"),
        (ReferenceWithGradient(), "sends_gradient"),
        (NamesTooMuch(), "needs_what_it_says"),
        (NamesTooLittle(), "needs_what_it_says"),
        (OtherStart(), "starts_where"),
        (IgnoresMargins(), "uses_a_margin"),
        (FixedMargin(), "negates_its_margin"),
        (WritesIntoItsInput(), "leaves_its_inputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_wrong_objective_breaks_its_contract(objective: Objective, broken: str) -> None:
    (question,) = [question for question in QUESTIONS if broken in question.__name__]
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        question(objective)


class Negative(Weighting):
    """Pushes some pairs the other way."""

    def forward(self, scored: Scored, batch: Batch) -> Weights:
        return Weights(torch.linspace(-0.5, 1, len(batch.prompts)))


class Attached(Weighting):
    """Sends gradient through the weight."""

    def forward(self, scored: Scored, batch: Batch) -> Weights:
        assert scored.logp_KB is not None
        return Weights(scored.logp_KB[0].sigmoid())


@pytest.mark.parametrize("weighting", [Negative(), Attached()], ids=lambda value: type(value).__name__)
def test_a_wrong_weighting_breaks_its_contract(weighting: Weighting) -> None:
    with pytest.raises(AssertionError):
        weightings.test_weighting_gives_weights_without_gradient(weighting)


class GlobalNoise(Sampler):
    """Draws from the global generator, whatever the key."""

    def forward(self, batch: Any, encoded: Any, policy: Any, reference: Any, *, key: Any) -> Any:
        sample = SharedNoise()(batch, encoded, policy, reference, key=key)
        return sample._replace(x_KBCHW=sample.x_KBCHW + torch.randn_like(sample.x_KBCHW))


def test_a_sampler_with_global_randomness_breaks_its_contracts() -> None:
    for question in (
        samplers.test_sampler_draws_the_same_for_the_same_key,
        samplers.test_sampler_draws_a_record_the_same_wherever_it_stands,
    ):
        question(SharedNoise())
        with pytest.raises(AssertionError):
            question(GlobalNoise())


class RankInBatch(Reward):
    """Scores an image by its neighbours."""

    differentiable = True

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        brightness_N = image_NCHW.mean((1, 2, 3))
        return brightness_N - brightness_N.mean()


def test_a_reward_that_looks_at_its_neighbours_breaks_its_contract() -> None:
    with pytest.raises(AssertionError):
        judges.test_reward_gives_one_finite_score_per_image_whatever_stands_beside_it(RankInBatch())


class Numbered(RankInBatch):
    """Tells a number where a text is read."""

    def origins(self) -> Any:
        return {"model": 3}


def test_a_reward_that_records_something_else_than_texts_breaks_its_contract() -> None:
    judges.test_reward_says_where_it_comes_from(RankInBatch())
    with pytest.raises(AssertionError):
        judges.test_reward_says_where_it_comes_from(Numbered())


class OtherPrompts(ToyPairs):
    """Records that are not as announced."""

    def __getitem__(self, index: int) -> PairRecord:
        return super().__getitem__(index)._replace(prompt="a pear")


@pytest.mark.parametrize("name", sources.__all__)
def test_toy_pairs_keep_the_contracts_of_a_source(name: str) -> None:
    getattr(sources, name)(ToyPairs(12))


def test_a_source_with_other_prompts_than_it_says_breaks_its_contract() -> None:
    with pytest.raises(AssertionError):
        sources.test_source_tells_of_its_records_what_they_say(OtherPrompts(12))


@pytest.mark.parametrize("name", [name for name in backbones.__all__ if "reads_back" not in name])
def test_toy_backbone_keeps_the_contracts_of_a_backbone(name: str) -> None:
    getattr(backbones, name)(ToyBackbone())


def test_toy_backbone_reads_back_what_it_wrote(tmp_path: Path) -> None:
    backbones.test_backbone_reads_back_what_it_wrote(ToyBackbone(), tmp_path)


class SharedReference(ToyBackbone):
    """The defect of a published trainer: both networks are one object."""

    def build_reference(self, policy: torch.nn.Module) -> ToyNetwork:
        assert isinstance(policy, ToyNetwork)
        return policy


def test_a_backbone_whose_reference_is_the_policy_breaks_its_contract() -> None:
    with pytest.raises(AssertionError):
        backbones.test_backbone_reference_equals_the_policy_and_is_another_network(SharedReference())


def test_toy_network_has_as_many_weights_as_it_says() -> None:
    assert sum(parameter.numel() for parameter in ToyNetwork().parameters()) == 499


def test_toys_learn_in_a_step_of_the_real_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss is log 2, descent on a fixed batch lowers it, and the reference stays."""
    module = AlignModule(DiffusionDPO(beta=1.0), SharedNoise(), ToyBackbone(), torch.optim.AdamW)
    module.configure_model()
    monkeypatch.setattr(module, "_report", lambda *given: None)
    assert module.reference is not None
    fingerprint = module.reference.fingerprint()
    assert module.policy is not None
    optimizer = torch.optim.SGD(module.policy.parameters(), lr=0.01)
    pairs = PairDataset(ToyPairs(), resolution=16)
    batch, losses = collate([pairs[index, 0] for index in range(6)]), []
    for _ in range(5):
        loss = module.training_step(batch, 0)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[4] < losses[2] < losses[0]
    assert module.reference.fingerprint() == fingerprint


def test_toys_say_what_they_refuse() -> None:
    with pytest.raises(ValueError, match=r"^ToyBackbone: resolution must be even and at least 2, got 7$"):
        ToyBackbone(resolution=7)
    with pytest.raises(ValueError, match=r"^ToyPairs: count must be at least 1, got 0$"):
        ToyPairs(0)


def test_toy_batch_holds_the_same_records_whatever_its_size() -> None:
    small, large = toy_batch(2), toy_batch(5)
    assert torch.equal(small.image_KBCHW, large.image_KBCHW[:, :2])
    assert small.prompts == large.prompts[:2]
    assert small.label_B is None
    single = toy_batch(4, candidates=1)
    assert single.label_B is not None
    assert single.label_B.tolist() == [1, 0, 1, 0]


def test_toy_scored_has_the_given_fields_and_no_others() -> None:
    logp_KB = torch.zeros(2, 3)
    scored = toy_scored(ref_logp_KB=logp_KB)
    assert scored.logp_KB is None
    assert scored.ref_logp_KB is logp_KB
    assert scored.sample.t_KB.shape == (2, 3)


def test_central_differences_are_the_slopes_of_a_known_loss() -> None:
    """D softplus(-u) / du = -sigmoid(-u), with u = w - l."""
    at_KB = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.5, 4.0]], dtype=torch.float64)
    slope_KB = central_differences(lambda x_KB: F.softplus(x_KB[1] - x_KB[0]), at_KB)
    expected_B = torch.sigmoid(at_KB[1] - at_KB[0])
    assert_close(slope_KB, torch.stack([-expected_B, expected_B]), rtol=1e-8, atol=1e-10)


def test_slopes_that_autograd_gets_wrong_are_found() -> None:
    """A detached factor, and a loss that mixes prompts."""
    at_KB = torch.tensor([[0.3, -1.0], [0.1, 0.5]])
    assert_slopes(lambda x_KB: (x_KB[0] * x_KB[1]).exp(), at_KB)
    with pytest.raises(AssertionError):
        assert_slopes(lambda x_KB: x_KB[0].detach() * x_KB[1], at_KB)
    with pytest.raises(AssertionError):
        assert_slopes(lambda x_KB: (x_KB[0] - x_KB[1]).mean().expand(2).square(), at_KB)


def test_a_distribution_that_is_not_there_is_no_reason_to_test_nothing() -> None:
    asked = Mock(module=Mock(spec=["DISTRIBUTION"], DISTRIBUTION="acme_align"), fixturenames=["objective"])
    with pytest.raises(
        pytest.UsageError, match=r"no plugin of 'acme_align' is installed, only of .*acme-align"
    ):
        building.pytest_generate_tests(asked)
    asked.module.DISTRIBUTION = "acme-align"
    building.pytest_generate_tests(asked)
    (_, found), _ = asked.parametrize.call_args
    assert [parameter.id for parameter in found] == ["acme:AcmeHinge"]


def test_nothing_but_the_contracts_imports_pytest() -> None:
    allowed = ROOT / "alignkit" / "testing" / "contracts"
    for path in [*(ROOT / "alignkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        if allowed in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert "pytest" not in {name.partition(".")[0] for name in names}, path
