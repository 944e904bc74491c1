"""Tiny random models of published architectures, in the files that those have."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from alignkit.testing.pipelines import LETTERS, TEXT_LENGTH, tiny_tokenizer

Network = TypeVar("Network", bound=nn.Module)
SIDE = 32
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
HEAD_LAYERS = (0, 2, 4, 6, 7)


def spread(build: Callable[[], Network], seed: int) -> Network:
    """A network with weights large enough for outputs that differ, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.2)
            elif parameter.dim() == 1:
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


def clip_config() -> CLIPConfig:
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {
        **sizes,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_act": "gelu",
    }
    vision = {**sizes, "hidden_size": 40, "image_size": SIDE, "patch_size": 8, "hidden_act": "gelu"}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def tiny_clip(folder: Path, *, seed: int = 0, safe: bool = True) -> Path:
    """A whole CLIP: model, tokenizer, processor."""
    model = spread(lambda: CLIPModel(clip_config()), seed)
    # all cosines of random pictures and texts are positive: clipped ones have no gradient
    with torch.no_grad():
        for norm, projection in (
            (model.vision_model.post_layernorm, model.visual_projection),
            (model.text_model.final_layer_norm, model.text_projection),
        ):
            norm.bias += 1
            projection.weight[0] = 0.2
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def tiny_dino(folder: Path) -> Path:
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    spread(lambda: Dinov2Model(config), 0).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_center_crop": True,
                "crop_size": {"height": 28, "width": 28},
                "size": {"shortest_edge": 32},
                "do_resize": True,
                "do_normalize": True,
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
                "resample": 3,
            }
        )
    )
    return folder


def head_weights(width: int, prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    """Those of the five linear layers, by the authors' names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer, before, after in zip(HEAD_LAYERS, (width, *HEAD_WIDTHS), HEAD_WIDTHS, strict=False):
        found[f"{prefix}layers.{layer}.weight"] = (
            torch.randn(after, before, generator=generator) / before**0.5
        )
        found[f"{prefix}layers.{layer}.bias"] = torch.randn(after, generator=generator)
    return found


def tiny_head(folder: Path, width: int = 24) -> Path:
    path = folder / "head.safetensors"
    save_file(head_weights(width), path)
    return path


def tiny_bert_tokenizer(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    return folder


class OpenBlock(nn.Module):
    """A block of open_clip's transformers, of plain torch and with its names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = {"c_fc": nn.Linear(width, 48), "gelu": nn.GELU(), "c_proj": nn.Linear(48, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x_NLD: Tensor, mask_LL: Tensor | None) -> Tensor:
        normed_NLD = self.ln_1(x_NLD)
        attended_NLD, _ = self.attn(normed_NLD, normed_NLD, normed_NLD, attn_mask=mask_LL, need_weights=False)
        x_NLD = x_NLD + attended_NLD
        more_NLD: Tensor = self.mlp(self.ln_2(x_NLD))
        return x_NLD + more_NLD


class OpenTransformer(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([OpenBlock(width, heads) for _ in range(2)])

    def forward(self, x_NLD: Tensor, mask_LL: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x_NLD = block(x_NLD, mask_LL)
        return x_NLD


class OpenVision(nn.Module):
    """open_clip's picture tower: a class token, a norm before and one after, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 40, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(40))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // 8) ** 2 + 1, 40))
        self.ln_pre, self.ln_post = nn.LayerNorm(40), nn.LayerNorm(40)
        self.transformer = OpenTransformer(40, 2)
        self.proj = nn.Parameter(torch.randn(40, 24))

    def forward(self, pixel_NCHW: Tensor) -> Tensor:
        patch_NLD = self.conv1(pixel_NCHW).flatten(2).transpose(1, 2)
        class_N1D = self.class_embedding.expand(len(patch_NLD), 1, -1)
        x_NLD = torch.cat([class_N1D, patch_NLD], dim=1) + self.positional_embedding
        image_ND: Tensor = self.ln_post(self.transformer(self.ln_pre(x_NLD))[:, 0]) @ self.proj
        return image_ND


class OpenCLIP(nn.Module):
    """A CLIP of plain torch, with open_clip's names and of ``clip_config``'s shape."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.transformer = OpenVision(), OpenTransformer(32, 2)
        self.token_embedding = nn.Embedding(len(tiny_tokenizer()), 32)
        self.positional_embedding = nn.Parameter(torch.randn(TEXT_LENGTH, 32))
        self.ln_final = nn.LayerNorm(32)
        self.text_projection = nn.Parameter(torch.randn(32, 24))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def text(self, token_NL: Tensor, end_N: Tensor) -> Tensor:
        """What the token at each text's end says; none looks at what follows it."""
        length = token_NL.shape[1]
        mask_LL = torch.full((length, length), -torch.inf).triu(1)
        x_NLD = self.token_embedding(token_NL) + self.positional_embedding[:length]
        x_NLD = self.ln_final(self.transformer(x_NLD, mask_LL))
        text_ND: Tensor = x_NLD[torch.arange(len(x_NLD)), end_N] @ self.text_projection
        return text_ND


def open_clip(seed: int = 0) -> OpenCLIP:
    return spread(OpenCLIP, seed)


def tiny_hps(folder: Path) -> Path:
    """A file as HPS v2 was published: open_clip's weights under "state_dict"."""
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": open_clip().state_dict()}, folder / "hps.pt")
    return folder / "hps.pt"


def image_reward_weights(width: int = 128, text_width: int = 128, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of BLIP's names, two layers each, 32 pixels, and what the published file has besides."""
    generator = torch.Generator().manual_seed(seed)
    vision, text, found = "blip.visual_encoder.", "blip.text_encoder.", head_weights(text_width, "mlp.")

    def linear(name: str, after: int, before: int) -> None:
        found[f"{name}.weight"] = torch.randn(after, before, generator=generator) / before**0.5
        found[f"{name}.bias"] = 0.1 * torch.randn(after, generator=generator)

    def norm(name: str, size: int) -> None:
        found[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=generator)
        found[f"{name}.bias"] = 0.1 * torch.randn(size, generator=generator)

    found[f"{vision}cls_token"] = torch.randn(1, 1, width, generator=generator)
    found[f"{vision}pos_embed"] = torch.randn(1, 5, width, generator=generator)
    found[f"{vision}patch_embed.proj.weight"] = 0.05 * torch.randn(width, 3, 16, 16, generator=generator)
    found[f"{vision}patch_embed.proj.bias"] = torch.randn(width, generator=generator)
    for layer in (f"{vision}blocks.0.", f"{vision}blocks.1."):
        norm(f"{layer}norm1", width)
        norm(f"{layer}norm2", width)
        linear(f"{layer}attn.qkv", 3 * width, width)
        linear(f"{layer}attn.proj", width, width)
        linear(f"{layer}mlp.fc1", 96, width)
        linear(f"{layer}mlp.fc2", width, 96)
    norm(f"{vision}norm", width)
    found[f"{text}embeddings.word_embeddings.weight"] = torch.randn(59, text_width, generator=generator)
    found[f"{text}embeddings.position_embeddings.weight"] = torch.randn(40, text_width, generator=generator)
    found[f"{text}embeddings.position_ids"] = torch.arange(40)[None]
    norm(f"{text}embeddings.LayerNorm", text_width)
    for layer in (f"{text}encoder.layer.0.", f"{text}encoder.layer.1."):
        for attention, read in (("attention", text_width), ("crossattention", width)):
            linear(f"{layer}{attention}.self.query", text_width, text_width)
            linear(f"{layer}{attention}.self.key", text_width, read)
            linear(f"{layer}{attention}.self.value", text_width, read)
            linear(f"{layer}{attention}.output.dense", text_width, text_width)
            norm(f"{layer}{attention}.output.LayerNorm", text_width)
        linear(f"{layer}intermediate.dense", 96, text_width)
        linear(f"{layer}output.dense", text_width, 96)
        norm(f"{layer}output.LayerNorm", text_width)
    linear("blip.vision_proj", 16, width)
    linear("blip.text_proj", 16, text_width)
    return found


def tiny_image_reward(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(image_reward_weights(), folder / "ImageReward.pt")
    return folder / "ImageReward.pt"
