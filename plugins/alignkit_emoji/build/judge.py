"""Training of the judge: a small CLIP that knows which caption belongs to which picture, however blurred.

Suffixes: N pictures, M concepts, W wordings of a caption, L tokens, D width of the shared space, C H W.
"""

from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from alignkit_emoji.build.data import CAPTIONS, PictureBatch, PictureData
from alignkit_emoji.build.tokenizer import MAX_LENGTH, build_tokenizer

SIZE = 32
MAX_SHIFT = 3
COARSE_SIZES = (8, 11, 14, 18, 24)
# CLIP's own bound: above it a rounding error of half precision becomes a visible change of a probability
MAX_LOGIT_SCALE = 100.0


def worsened(image_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Moves, mirrors, recolours, coarsens and noises pictures, as a weak generator might; all in [-1, 1]."""
    count = len(image_NCHW)

    def spread(*shape: int) -> Tensor:
        return 2 * torch.rand(count, *shape, generator=generator) - 1

    map_N23 = torch.zeros(count, 2, 3)
    map_N23[:, 0, 0] = spread().sign()
    map_N23[:, 1, 1] = 1
    map_N23[:, :, 2] = (spread(2) * (MAX_SHIFT + 0.5)).round() * 2 / SIZE
    grid_NHW2 = F.affine_grid(map_N23, list(image_NCHW.shape), align_corners=False)
    # what moves in from beyond the edge is white, so that white has to be the zero that grid_sample pads with
    moved_NCHW = F.grid_sample(image_NCHW - 1, grid_NHW2, padding_mode="zeros", align_corners=False) + 1

    contrast_NC11 = 1 + 0.15 * spread(3, 1, 1)
    brightness_NC11 = 0.2 * spread(1, 1, 1) + 0.1 * spread(3, 1, 1)
    result_NCHW = moved_NCHW * contrast_NC11 + brightness_NC11 * (spread(1, 1, 1) > 0)

    coarse_N = torch.randint(2 * len(COARSE_SIZES), (count,), generator=generator)
    for i, size in enumerate(COARSE_SIZES):
        chosen_N = coarse_N == i
        few_NCHW = F.interpolate(result_NCHW[chosen_N], size=(size, size), mode="bilinear", antialias=True)
        result_NCHW[chosen_N] = F.interpolate(few_NCHW, size=(SIZE, SIZE), mode="bicubic")

    strength_N111 = 0.4 * spread(1, 1, 1).clamp(min=0)
    noise_NCHW = torch.randn(image_NCHW.shape, generator=generator)
    return (result_NCHW + strength_N111 * noise_NCHW).clamp(-1, 1)


def contrastive_loss(logit_NM: Tensor, concept_N: Tensor) -> Tensor:
    """Cross-entropy in both directions; all pictures of one concept are equally right for its caption.

    Args:
        logit_NM: scaled cosines of pictures with the captions of all concepts.
        concept_N: number of each picture's concept.

    Returns:
        Mean over pictures, and over the captions that have one, nats.
    """
    shown_NM = F.one_hot(concept_N, logit_NM.shape[1]).float()
    num_pictures_M = shown_NM.sum(0)
    has_picture_M = num_pictures_M > 0
    target_MN = (shown_NM / num_pictures_M.clamp(min=1)).T
    to_picture = F.cross_entropy(logit_NM.T[has_picture_M], target_MN[has_picture_M])
    return (F.cross_entropy(logit_NM, concept_N) + to_picture) / 2


class JudgeTraining(pl.LightningModule):
    """Trains a small ``CLIPModel`` on pictures and captions and writes it as a folder of transformers.

    Args:
        out: the folder for model, tokenizer and image processor.
        lr: peak learning rate of a one-cycle schedule.
        weight_decay: of AdamW.
        vision_width: width of the vision transformer.
        vision_layers: its depth.
        text_width: width of the text transformer.
        text_layers: its depth.
        shared_width: size of the embeddings that are compared.
    """

    token_MWL: Tensor

    def __init__(
        self,
        out: Path,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        vision_width: int = 96,
        vision_layers: int = 4,
        text_width: int = 64,
        text_layers: int = 2,
        shared_width: int = 64,
    ) -> None:
        super().__init__()
        self.out, self.lr, self.weight_decay = out, lr, weight_decay
        self.shared_width = shared_width
        self.vision = {"hidden_size": vision_width, "intermediate_size": 4 * vision_width}
        self.vision |= {"num_hidden_layers": vision_layers, "num_attention_heads": 4}
        self.text = {"hidden_size": text_width, "intermediate_size": 4 * text_width}
        self.text |= {"num_hidden_layers": text_layers, "num_attention_heads": 4}

    def setup(self, stage: str) -> None:
        """Tokenizes all captions once and builds the networks around the vocabulary."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PictureData)
        words = {word for text in [*CAPTIONS, *data.concepts] for word in text.replace("{}", "").split()}
        self.tokenizer = build_tokenizer(words)
        special = {
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        self.clip = CLIPModel(
            CLIPConfig(
                vision_config={**self.vision, "image_size": SIZE, "patch_size": 4},
                text_config={
                    **self.text,
                    **special,
                    "vocab_size": len(self.tokenizer),
                    "max_position_embeddings": MAX_LENGTH,
                },
                projection_dim=self.shared_width,
            )
        )
        captions = [caption.format(concept) for concept in data.concepts for caption in CAPTIONS]
        encoded = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        token_MWL = encoded.input_ids.view(len(data.concepts), len(CAPTIONS), -1)
        self.register_buffer("token_MWL", token_MWL, persistent=False)

    def cosine(self, image_NCHW: Tensor, token_ML: Tensor) -> Tensor:
        """Cosine of every picture with every caption, (N, M)."""
        image_ND = self.clip.get_image_features(pixel_values=image_NCHW).pooler_output
        text_MD = self.clip.get_text_features(input_ids=token_ML).pooler_output
        return F.normalize(image_ND, dim=1) @ F.normalize(text_MD, dim=1).T

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.global_step)
        image_NCHW = worsened(batch.image_NCHW, generator)
        concept_M = torch.arange(len(self.token_MWL))
        wording_M = torch.randint(len(CAPTIONS), concept_M.shape, generator=generator)
        cosine_NM = self.cosine(image_NCHW, self.token_MWL[concept_M, wording_M])
        scale = self.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        loss = contrastive_loss(scale * cosine_NM, batch.concept_N)
        self.log_dict({"loss": loss.detach(), "scale": scale.detach()}, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image_NCHW, concept_N, _ = batch
        generator = torch.Generator().manual_seed(batch_idx)
        for name, shown_NCHW in (("clean", image_NCHW), ("worsened", worsened(image_NCHW, generator))):
            cosine_NM = self.cosine(shown_NCHW, self.token_MWL[:, 0])
            hit_N = cosine_NM.argmax(1) == concept_N
            self.log(f"val/{name}_accuracy", hit_N.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = self.clip.parameters()
        optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)
        steps = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Writes the folder, in half precision."""
        self.clip.half().save_pretrained(self.out)
        self.tokenizer.save_pretrained(self.out)
        CLIPImageProcessorPil(
            size={"shortest_edge": SIZE},
            crop_size={"height": SIZE, "width": SIZE},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ).save_pretrained(self.out)
