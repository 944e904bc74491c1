"""ImageReward. Suffixes: N images; L tokens; D width; C H W."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from alignkit import Reward
from alignkit_rewards import blip_keys
from alignkit_rewards.clip import TOKENIZER, check_pairs, framed, in_parts, origins, tokenizer_of
from alignkit_rewards.framing import Framing
from alignkit_rewards.linear_head import linear_head
from alignkit_rewards.places import settings, single_file
from alignkit_rewards.weights import built, read_tensors

# of the head's output on the authors' data
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_LENGTH = 35


class ImageReward(Reward):
    """What people would prefer, in deviations of the authors' data (Xu et al., 2023).

    https://arxiv.org/abs/2304.05977.

    BLIP's text encoder reads the prompt while it looks at what its ViT-L/16 sees, and five linear layers make
    a number of its first token:
    https://github.com/THUDM/ImageReward/blob/c1392c6dd0fd6ecd6d416c96959ab744a6d0a8fb/ImageReward/ImageReward.py#L82-L170.
    About -2 to 2, 0 on the average of the authors' pictures. Of a prompt the first 35 tokens are read, both
    marks among them.

    Shapes are those of the checkpoint.

    Args:
        path: file of the weights: "owner/name/file" of a hub id, or local.
        revision: a hub id's branch, tag or commit; the known hub ids are pinned to a commit (``places.py``).
        tokenizer: folder or hub id of BERT's tokenizer.
        tokenizer_revision: of the tokenizer's hub id.
    """

    differentiable = True

    def __init__(
        self,
        path: str = "zai-org/ImageReward/ImageReward.pt",
        revision: str | None = None,
        tokenizer: str = "google-bert/bert-base-uncased",
        tokenizer_revision: str | None = None,
    ) -> None:
        super().__init__()
        place = single_file(path, revision=revision, owner="ImageReward")
        beside = settings(
            tokenizer, marker=TOKENIZER, revision=tokenizer_revision, owner="ImageReward: tokenizer"
        )
        weights = read_tensors(place.root, "ImageReward")
        vision, text = blip_keys.vision_weights(weights), blip_keys.text_weights(weights)
        try:
            vision_config = BlipVisionConfig(**blip_keys.vision_config(vision))
            text_config = BlipTextConfig(**blip_keys.text_config(text))
        except KeyError as error:
            raise ValueError(
                f"ImageReward: {path!r} lacks {error.args[0]} of a BLIP under {blip_keys.VISION} or "
                f"{blip_keys.TEXT}; give ImageReward.pt"
            ) from error
        self.vision = built(BlipVisionModel, vision_config, vision, repr(path), "ImageReward")
        self.text = built(
            BlipTextModel, text_config, text, repr(path), "ImageReward", add_pooling_layer=False
        )
        self.head = linear_head(weights, text_config.hidden_size, "mlp.", repr(path), "ImageReward")
        self.tokenizer = tokenizer_of(BertTokenizer, beside, "ImageReward: tokenizer")
        side = vision_config.image_size
        self.framing = Framing(shortest=side, crop=(side, side)).frame
        self._places = {"model": place, "tokenizer": beside}

    def origins(self) -> Mapping[str, str]:
        return origins(self._places)

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        check_pairs(image_NCHW, prompts)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        ).to(self.text.device)

        def score(part: slice) -> Tensor:
            seen_NLD = self.vision(framed(image_NCHW[part], self.framing, self.vision)).last_hidden_state
            read_NLD = self.text(
                input_ids=tokens.input_ids[part],
                attention_mask=tokens.attention_mask[part],
                encoder_hidden_states=seen_NLD,
            ).last_hidden_state
            score_N1: Tensor = self.head(read_NLD[:, 0])
            return (score_N1[:, 0].float() - MEAN) / STD

        return in_parts(score, image_NCHW)
