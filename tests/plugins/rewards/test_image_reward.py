"""ImageReward against BLIP's layout in plain torch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from transformers import BertTokenizer

from alignkit_rewards.framing import CLIP_MEAN, CLIP_STD
from alignkit_rewards.image_reward import ImageReward
from tests.plugins.rewards.models import (
    HEAD_LAYERS,
    image_reward_weights,
    tiny_bert_tokenizer,
    tiny_image_reward,
)

# the second is longer than 35 tokens
PROMPTS = ["a red apple", "a very long and winding road of so many letters", "plum"]


class Blip:
    """Its forward pass, over weights by their published names. Heads are 64 wide."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: weight.double() for name, weight in weights.items()}

    def linear(self, x_NLD: Tensor, name: str) -> Tensor:
        return x_NLD @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x_NLD: Tensor, name: str, epsilon: float) -> Tensor:
        centred_NLD = x_NLD - x_NLD.mean(-1, keepdim=True)
        scaled_NLD = centred_NLD / (centred_NLD.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled_NLD * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, q_NLD: Tensor, k_NMD: Tensor, v_NMD: Tensor, keep_NM: Tensor | None = None) -> Tensor:
        heads = []
        for part in range(0, q_NLD.shape[-1], 64):
            head = slice(part, part + 64)
            logit_NLM = q_NLD[..., head] @ k_NMD[..., head].transpose(1, 2) / 8
            if keep_NM is not None:
                logit_NLM = logit_NLM.masked_fill(~keep_NM[:, None], -torch.inf)
            heads.append(logit_NLM.softmax(-1) @ v_NMD[..., head])
        return torch.cat(heads, dim=-1)

    def vision(self, pixel_NCHW: Tensor) -> Tensor:
        """Norms before each part, and one at the end."""
        at = "blip.visual_encoder."
        patch = self.weights[f"{at}patch_embed.proj.weight"], self.weights[f"{at}patch_embed.proj.bias"]
        patch_NLD = F.conv2d(pixel_NCHW.double(), *patch, stride=16).flatten(2).transpose(1, 2)
        class_N1D = self.weights[f"{at}cls_token"].expand(len(patch_NLD), 1, -1)
        x_NLD = torch.cat([class_N1D, patch_NLD], 1) + self.weights[f"{at}pos_embed"]
        for block in (f"{at}blocks.0.", f"{at}blocks.1."):
            q_k_v = self.linear(self.norm(x_NLD, f"{block}norm1", 1e-6), f"{block}attn.qkv").chunk(3, -1)
            x_NLD = x_NLD + self.linear(self.attention(*q_k_v), f"{block}attn.proj")
            inner_NLD = self.linear(self.norm(x_NLD, f"{block}norm2", 1e-6), f"{block}mlp.fc1")
            x_NLD = x_NLD + self.linear(F.gelu(inner_NLD), f"{block}mlp.fc2")
        return self.norm(x_NLD, f"{at}norm", 1e-6)

    def text(self, token_NL: Tensor, keep_NL: Tensor, seen_NMD: Tensor) -> Tensor:
        """Norms after each part: itself, the picture, two layers."""
        at = "blip.text_encoder."
        x_NLD = self.weights[f"{at}embeddings.word_embeddings.weight"][token_NL]
        x_NLD = x_NLD + self.weights[f"{at}embeddings.position_embeddings.weight"][: token_NL.shape[1]]
        x_NLD = self.norm(x_NLD, f"{at}embeddings.LayerNorm", 1e-12)
        for layer in (f"{at}encoder.layer.0.", f"{at}encoder.layer.1."):
            for name, read_NMD, keep in (("attention", None, keep_NL), ("crossattention", seen_NMD, None)):
                read_NMD = x_NLD if read_NMD is None else read_NMD
                attended_NLD = self.attention(
                    self.linear(x_NLD, f"{layer}{name}.self.query"),
                    self.linear(read_NMD, f"{layer}{name}.self.key"),
                    self.linear(read_NMD, f"{layer}{name}.self.value"),
                    keep,
                )
                more_NLD = self.linear(attended_NLD, f"{layer}{name}.output.dense")
                x_NLD = self.norm(x_NLD + more_NLD, f"{layer}{name}.output.LayerNorm", 1e-12)
            inner_NLD = F.gelu(self.linear(x_NLD, f"{layer}intermediate.dense"))
            more_NLD = self.linear(inner_NLD, f"{layer}output.dense")
            x_NLD = self.norm(x_NLD + more_NLD, f"{layer}output.LayerNorm", 1e-12)
        return x_NLD

    def score(self, pixel_NCHW: Tensor, token_NL: Tensor, keep_NL: Tensor) -> Tensor:
        x_ND = self.text(token_NL, keep_NL, self.vision(pixel_NCHW))[:, 0]
        for layer in HEAD_LAYERS:
            x_ND = self.linear(x_ND, f"mlp.layers.{layer}")
        return (x_ND[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_score_is_blips_with_a_linear_head(tokenizer: Path, tmp_path: Path) -> None:
    """32 x 48 pixels: the middle 32 columns are seen."""
    image_NCHW = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    reward = ImageReward(str(tiny_image_reward(tmp_path)), tokenizer=str(tokenizer))
    tokens = BertTokenizer.from_pretrained(tokenizer)(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    assert tokens.attention_mask.sum(1).tolist() == [11, 35, 6]
    mean_C11, std_C11 = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    pixel_NCHW = (image_NCHW[..., 8:40] - mean_C11) / std_C11
    with pytest.raises(ValueError, match=r"^a reward needs a prompt for each of 3 images, got 1$"):
        reward(image_NCHW, PROMPTS[:1])
    blip = Blip(image_reward_weights())
    expected_N = blip.score(pixel_NCHW, tokens.input_ids, tokens.attention_mask.bool())
    assert_close(reward(image_NCHW, PROMPTS), expected_N.float(), rtol=0, atol=2e-5)
    assert expected_N.std() > 0.05


def test_layer_norms_are_those_of_blip(tokenizer: Path, tmp_path: Path) -> None:
    """Other than what transformers' classes have by default."""
    reward = ImageReward(str(tiny_image_reward(tmp_path)), tokenizer=str(tokenizer))
    assert reward.vision.config.layer_norm_eps == 1e-6
    assert reward.text.config.layer_norm_eps == 1e-12
    assert (reward.vision.config.num_attention_heads, reward.text.config.num_attention_heads) == (2, 2)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (
            "blip.visual_encoder.norm.bias",
            "lacks 1 weights of a BlipVisionModel, such as post_",
        ),
        ("blip.visual_encoder.pos_embed", "lacks embeddings.position_embedding of a BLIP under"),
        ("blip.text_encoder.encoder.layer.1.output.dense.bias", "lacks 1 weights of a BlipTextModel, such"),
        (
            "mlp.layers.7.weight",
            r"must have mlp.layers.7.weight of shape \(1, 16\), has nothing: the",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    tokenizer: Path, tmp_path: Path, lost: str, message: str
) -> None:
    weights = image_reward_weights()
    del weights[lost]
    torch.save(weights, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match=rf"^ImageReward: '.*' {message}"):
        ImageReward(str(tmp_path / "ImageReward.pt"), tokenizer=str(tokenizer))
