"""Rewards and features: what they say about real, wrong, spoilt and repeated pictures."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from alignkit.components import Reward
from alignkit.evaluation.statistics.spread import diversity
from alignkit_emoji.features import EmojiFeatures
from alignkit_emoji.pictures import load_concepts, load_pictures
from alignkit_emoji.reward import EmojiFidelity, EmojiRecognition, MajorityTaste, MinorityTaste
from alignkit_emoji.taste import MAJORITY, MINORITY


@pytest.fixture(scope="module", name="image_NCHW")
def real_images() -> Tensor:
    return load_pictures().image_NCHW.float() / 255


@pytest.fixture(scope="module")
def prompts() -> tuple[str, ...]:
    return load_pictures().concepts


@pytest.fixture(scope="module")
def fidelity() -> EmojiFidelity:
    return EmojiFidelity()


@pytest.fixture(scope="module")
def recognition() -> EmojiRecognition:
    return EmojiRecognition()


def test_fidelity_prefers_the_right_caption(fidelity, image_NCHW, prompts):
    """Against the caption of the picture halfway through the list."""
    wrong = prompts[572:] + prompts[:572]
    with torch.no_grad():
        right_N, wrong_N = fidelity(image_NCHW, prompts), fidelity(image_NCHW, wrong)
    assert (right_N > wrong_N).float().mean() > 0.95
    assert right_N.shape == (1144,)
    assert right_N.abs().max() <= 100


def test_fidelity_falls_with_every_other_picture_or_noise_blended_in(fidelity, image_NCHW, prompts):
    """The mean falls at each step, and at half strength nearly every picture has lost."""
    few_NCHW, few_prompts = image_NCHW[::8], prompts[::8]
    noise_NCHW = torch.rand(few_NCHW.shape, generator=torch.Generator().manual_seed(0))
    for other_NCHW in (noise_NCHW, few_NCHW.roll(71, 0)):
        with torch.no_grad():
            blends = [torch.lerp(few_NCHW, other_NCHW, share) for share in (0, 0.25, 0.5, 0.75, 1)]
            score_SN = torch.stack([fidelity(blend_NCHW, few_prompts) for blend_NCHW in blends])
        assert (score_SN.mean(1).diff() < 0).all()
        assert (score_SN[2] < score_SN[0]).float().mean() > 0.9


def test_fidelity_takes_images_of_any_size(fidelity, image_NCHW, prompts):
    """Twice the pixels show the same picture: enlarged and reduced again, scores move by little."""
    few_NCHW, few_prompts = image_NCHW[:64], prompts[:64]
    large_NCHW = F.interpolate(few_NCHW, size=(64, 64), mode="nearest")
    with torch.no_grad():
        assert_close(fidelity(large_NCHW, few_prompts), fidelity(few_NCHW, few_prompts), atol=15, rtol=0)
        assert (fidelity(large_NCHW, few_prompts) - fidelity(few_NCHW, few_prompts)).abs().mean() < 3


def test_recognition_is_the_softmax_over_the_shipped_concepts(recognition, image_NCHW, prompts):
    concepts = load_concepts()
    one_NCHW = image_NCHW[:1].expand(len(concepts), -1, -1, -1)
    with torch.no_grad():
        probability_M = recognition(one_NCHW, concepts)
    assert_close(probability_M.sum(), torch.tensor(1.0))
    assert concepts[probability_M.argmax()] == prompts[0]


def test_recognition_of_a_foreign_prompt_is_one_more_alternative(recognition, image_NCHW):
    """Its odds are those against the 286 together: p / (1 - p) = e^own / sum e^other."""
    judge = recognition.judge
    with torch.no_grad():
        image_ND = judge.embed_images(image_NCHW[:3])
        own_N = judge.scale * (image_ND @ judge.embed_texts(["a bicycle"]).T)[:, 0]
        other_NM = judge.scale * image_ND @ judge.embed_texts(load_concepts()).T
        probability_N = recognition(image_NCHW[:3], ["a bicycle"] * 3)
    assert_close(torch.logit(probability_N), own_N - other_NM.logsumexp(1), atol=1e-3, rtol=1e-3)


def test_recognition_of_real_pictures_is_far_above_chance(recognition, image_NCHW, prompts):
    """Chance is 1/286; the shipped weights give 0.60 over all pictures."""
    with torch.no_grad():
        right_N = recognition(image_NCHW[::4], prompts[::4])
        wrong_N = recognition(image_NCHW[::4], prompts[572::4] + prompts[:572:4])
    assert right_N.mean() > 0.5
    assert wrong_N.mean() < 0.01


def test_taste_rewards_are_the_utilities(image_NCHW, prompts):
    assert_close(MajorityTaste()(image_NCHW, prompts), MAJORITY.utility(image_NCHW))
    assert_close(MinorityTaste()(image_NCHW, prompts), MINORITY.utility(image_NCHW))


@pytest.mark.parametrize("reward_class", [MajorityTaste, MinorityTaste, EmojiFidelity, EmojiRecognition])
def test_a_step_along_the_gradient_raises_the_reward(reward_class, image_NCHW, prompts):
    reward: Reward = reward_class()
    assert reward.differentiable
    # recognition of a clean picture can be flat near 1, so all are asked about spoilt ones
    noise_NCHW = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shown_NCHW = torch.lerp(image_NCHW[:8], noise_NCHW, 0.4).requires_grad_()
    before_N = reward(shown_NCHW, prompts[:8])
    before_N.sum().backward()
    step_NCHW = 1e-3 * F.normalize(shown_NCHW.grad, dim=(1, 2, 3))
    with torch.no_grad():
        assert (reward(shown_NCHW + step_NCHW, prompts[:8]) > before_N).all()
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_features_are_the_judges_embeddings(image_NCHW, fidelity):
    with torch.no_grad():
        assert_close(EmojiFeatures()(image_NCHW[:4]), fidelity.judge.embed_images(image_NCHW[:4]))


def test_drawings_of_four_concepts_are_more_diverse_than_four_of_one(image_NCHW):
    with torch.no_grad():
        feature_PSD = EmojiFeatures()(torch.stack([image_NCHW[:4], image_NCHW[:800:200]]).flatten(0, 1))
    same, different = diversity(feature_PSD.view(2, 4, -1).double().numpy())
    assert 0.01 < same < different
