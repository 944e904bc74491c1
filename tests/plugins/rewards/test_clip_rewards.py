"""PickScore, CLIPScore, the aesthetic predictor and features against plain transformers and PIL."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from alignkit_rewards.aesthetic import Aesthetic
from alignkit_rewards.clip_score import CLIPScore
from alignkit_rewards.features import CLIPFeatures, DINOFeatures
from alignkit_rewards.pick_score import PickScore
from tests.plugins.rewards.models import HEAD_LAYERS, SIDE, head_weights, tiny_clip, tiny_dino, tiny_head

# the second is longer than the 16 tokens that the model reads
PROMPTS = ["a red apple", "a very long and winding road of many letters", "plum", "a red apple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def pictures(height: int = SIDE, width: int = SIDE, count: int = 4) -> list[Image.Image]:
    """Smooth pictures with some noise, of 8 bits."""
    generator = torch.Generator().manual_seed(0)
    coarse_NCHW = torch.rand(count, 3, 5, 5, generator=generator)
    image_NCHW = F.interpolate(coarse_NCHW, size=(height, width), mode="bilinear")
    image_NCHW = (image_NCHW + 0.1 * torch.randn(image_NCHW.shape, generator=generator)).clamp(0, 1)
    byte_NHWC = (255 * image_NCHW).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(byte_HWC) for byte_HWC in byte_NHWC]


def tensors(found: list[Image.Image]) -> Tensor:
    rows = [torch.tensor(list(picture.tobytes())).view(picture.height, picture.width, 3) for picture in found]
    return torch.stack(rows).permute(0, 3, 1, 2) / 255


def logits(folder: Path, found: list[Image.Image], prompts: list[str]) -> tuple[Tensor, Tensor]:
    """A plain CLIPModel's logits of each picture and its prompt, and its scale."""
    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    )
    inputs = processor(
        images=found, text=prompts, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        return model(**inputs).logits_per_image.diagonal(), model.logit_scale.exp()


def test_pick_score_is_the_models_own_logit(folder: Path) -> None:
    found = pictures()
    score_N = PickScore(str(folder), processor=str(folder))(tensors(found), PROMPTS)
    expected_N, scale = logits(folder, found, PROMPTS)
    assert_close(score_N, expected_N, rtol=0, atol=1e-5)
    assert expected_N.std() > 0.1
    assert scale.item() == pytest.approx(14.2857, abs=1e-3)


def test_clip_score_is_two_and_a_half_cosines(folder: Path) -> None:
    found = pictures()
    expected_N, scale = logits(folder, found, PROMPTS)
    assert_close(CLIPScore(str(folder))(tensors(found), PROMPTS), 2.5 * expected_N / scale, rtol=0, atol=1e-5)
    prefixed = [f"so {prompt}" for prompt in PROMPTS]
    expected_N, scale = logits(folder, found, prefixed)
    score_N = CLIPScore(str(folder), prefix="so ")(tensors(found), PROMPTS)
    assert_close(score_N, 2.5 * expected_N / scale, rtol=0, atol=1e-5)


def test_clip_score_of_a_negative_cosine_is_zero(folder: Path) -> None:
    reward = CLIPScore(str(folder))
    reward.clip.network.text_projection.weight.mul_(-1)
    assert reward(tensors(pictures()), PROMPTS).tolist() == [0.0] * 4


def test_aesthetic_is_five_linear_layers_on_an_embedding_of_length_one(folder: Path, tmp_path: Path) -> None:
    """Without activations they are one matrix: W5 W4 W3 W2 W1 x + ..., whose bias is what zero gets."""
    found, weights = pictures(), head_weights(24)
    pixel_NCHW = CLIPImageProcessorPil.from_pretrained(folder)(found, return_tensors="pt").pixel_values
    with torch.no_grad():
        image_ND = CLIPModel.from_pretrained(folder).get_image_features(pixel_NCHW).pooler_output
    expected_N = (image_ND / image_ND.norm(dim=1, keepdim=True)).double()
    for layer in HEAD_LAYERS:
        weight, bias = (weights[f"layers.{layer}.{kind}"].double() for kind in ("weight", "bias"))
        expected_N = expected_N @ weight.T + bias
    score_N = Aesthetic(str(tiny_head(tmp_path)), path=str(folder))(tensors(found), [""] * 4)
    assert_close(score_N, expected_N[:, 0].float(), rtol=0, atol=1e-5)
    assert expected_N.std() > 0.01
    # the same numbers of a pickle of tensors, as it was published
    torch.save(weights, tmp_path / "head.pth")
    again_N = Aesthetic(str(tmp_path / "head.pth"), path=str(folder))(tensors(found), [""] * 4)
    assert_close(again_N, score_N, rtol=0, atol=0)


def test_clip_features_are_its_embeddings(folder: Path) -> None:
    found = pictures()
    pixel_NCHW = CLIPImageProcessorPil.from_pretrained(folder)(found, return_tensors="pt").pixel_values
    with torch.no_grad():
        image_ND = CLIPModel.from_pretrained(folder).get_image_features(pixel_NCHW).pooler_output
        feature_ND = CLIPFeatures(str(folder))(tensors(found))
    assert_close(feature_ND, F.normalize(image_ND, dim=1), rtol=0, atol=1e-5)


def test_dino_features_are_its_class_token(tmp_path: Path) -> None:
    """At 32 pixels nothing is resized, and 28 of them are kept."""
    folder, found = tiny_dino(tmp_path), pictures()
    pixel_NCHW = BitImageProcessorPil.from_pretrained(folder)(found, return_tensors="pt").pixel_values
    assert pixel_NCHW.shape == (4, 3, 28, 28)
    with torch.no_grad():
        token_ND = Dinov2Model.from_pretrained(folder)(pixel_NCHW).last_hidden_state[:, 0]
        feature_ND = DINOFeatures(str(folder))(tensors(found))
    assert_close(feature_ND, F.normalize(token_ND, dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (97, 61), (40, 75), (20, 16)])
def test_scores_of_resized_pictures_are_near_those_of_the_processor(
    folder: Path, height: int, width: int
) -> None:
    """It rounds twice to 8 bits where we do not: cosines of this random network differ by up to 0.003."""
    found = pictures(height, width)
    expected_N, scale = logits(folder, found, PROMPTS)
    score_N = PickScore(str(folder), processor=str(folder))(tensors(found), PROMPTS)
    assert_close(score_N / scale, expected_N / scale, rtol=0, atol=4e-3)


def test_many_pictures_are_scored_as_few_are(folder: Path) -> None:
    """More than are computed at once, of prompts that come again."""
    found = pictures(count=70)
    prompts = [PROMPTS[place % 3] for place in range(70)]
    reward = PickScore(str(folder), processor=str(folder))
    whole_N = reward(tensors(found), prompts)
    parts = [reward(tensors(found[place : place + 1]), prompts[place : place + 1]) for place in range(70)]
    assert_close(whole_N, torch.cat(parts), rtol=0, atol=1e-4)


def test_a_prompt_for_each_picture_is_asked_for(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^a reward needs a prompt for each of 4 images, got 1$"):
        PickScore(str(folder), processor=str(folder))(tensors(pictures()), PROMPTS[:1])


def test_scores_are_of_single_precision_whatever_the_network_is(folder: Path) -> None:
    reward, image_NCHW = PickScore(str(folder), processor=str(folder)), tensors(pictures())
    single_N = reward(image_NCHW, PROMPTS)
    half_N = reward.to(torch.bfloat16)(image_NCHW, PROMPTS)
    assert half_N.dtype == torch.float32
    assert_close(half_N, single_N, rtol=0, atol=0.5)


def test_weights_are_frozen_and_told(folder: Path) -> None:
    reward = PickScore(str(folder), processor=str(folder))
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    told = reward.provenance()
    assert told["class"] == "alignkit_rewards.pick_score.PickScore"
    assert told["model"] == told["processor"] == str(folder)
    assert len(told["model sha256 model.safetensors"]) == 64
    assert "processor sha256 tokenizer.json" in told
    assert not any("commit" in name for name in told)
