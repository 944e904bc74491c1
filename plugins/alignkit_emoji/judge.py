"""The shipped judge, a CLIP of pictures and captions. Suffixes: N images or texts, L tokens, D width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from alignkit.files import sha256
from alignkit_emoji.pictures import FOLDER


class Judge(nn.Module):
    """Embeds images and texts into one space; ``alignkit_emoji.build.judge`` trained it."""

    def __init__(self) -> None:
        super().__init__()
        folder = FOLDER / "judge"
        self.clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.size = self.clip.config.vision_config.image_size
        self.width = self.clip.config.projection_dim

    def origins(self) -> dict[str, str]:
        """What a record says of it."""
        return {"judge sha256 model.safetensors": sha256(FOLDER / "judge" / "model.safetensors")}

    @property
    def scale(self) -> Tensor:
        """By what the judge's training multiplied cosines to make logits."""
        scale: Tensor = self.clip.logit_scale
        return scale.exp()

    def embed_images(self, image_NCHW: Tensor) -> Tensor:
        """Embeds images in [0, 1] of any size, (N, D), of length 1; differentiable."""
        image_NCHW = image_NCHW.float()
        if image_NCHW.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            image_NCHW = F.interpolate(image_NCHW, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(self.clip.get_image_features(pixel_values=2 * image_NCHW - 1).pooler_output, dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeds texts, (N, D), of length 1; what is longer than the tokenizer's 16 tokens is cut off."""
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        token_NL = tokens.input_ids.to(self.clip.device)
        return F.normalize(self.clip.get_text_features(input_ids=token_NL).pooler_output, dim=1)
