"""HPS v2. Suffixes: N images; C H W."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from alignkit import Reward
from alignkit_rewards.clip import CLIP, TOKENIZER, Clip, origins, tokenizer_of
from alignkit_rewards.framing import normalized, processor_framing, resized
from alignkit_rewards.open_clip_keys import to_transformers
from alignkit_rewards.places import settings, single_file
from alignkit_rewards.weights import built, config_of, read_tensors

SCALE = 100


class HPSv2(Reward):
    """What people of HPD v2 would prefer (Wu et al., 2023, https://arxiv.org/abs/2306.09341).

    100 times the cosine of a picture and its prompt, as the benchmark's tables print it:
    https://github.com/tgxs002/HPSv2/blob/866735ecaae999fa714bd9edfa05aa2672669ee3/hpsv2/evaluation.py#L141;
    ``hpsv2.score`` gives a hundredth of it. About 20 to 35. The file says which version it is: scores of v2.0
    and v2.1 cannot be compared. Of a prompt the first 77 tokens are read.

    A picture is shrunk or enlarged until its longer edge fits, and the rest is black
    (https://github.com/tgxs002/HPSv2/blob/866735ecaae999fa714bd9edfa05aa2672669ee3/hpsv2/src/open_clip/transform.py#L25-L47).
    Resizing is bicubic with antialiasing. The authors' code leaves that to torchvision, which does it since
    its version 0.17: figures of older environments differ.

    Deviation: float32, where the authors' code runs in mixed precision on a GPU. A picture whose longer edge
    fits already gets its black, too.

    Args:
        path: file of the weights, of open_clip's names: "owner/name/file" of a hub id, or local. v2.1 is
            HPS_v2.1_compressed.pt, v2.0 is HPS_v2_compressed.pt.
        revision: a hub id's branch, tag or commit; the known hub ids are pinned to a commit (``places.py``).
        base: folder or hub id of the CLIP that it was trained from, for its config and tokenizer; its weights
            are not read.
        base_revision: of the base's hub id.
    """

    differentiable = True

    def __init__(
        self,
        path: str = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        revision: str | None = None,
        base: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        base_revision: str | None = None,
    ) -> None:
        super().__init__()
        place = single_file(path, revision=revision, owner="HPSv2")
        beside = settings(base, marker=TOKENIZER, revision=base_revision, owner="HPSv2: base")
        config = CLIPConfig.from_dict(config_of(beside, CLIP, "HPSv2: base"))
        weights, unknown = to_transformers(read_tensors(place.root, "HPSv2"))
        if unknown:
            raise ValueError(
                f"HPSv2: {path!r} has {len(unknown)} weights that a CLIP of open_clip has not, such as "
                f"{unknown[0]}; give HPS_v2_compressed.pt or HPS_v2.1_compressed.pt"
            )
        network = built(CLIPModel, config, weights, repr(path), "HPSv2")
        processor = processor_framing(beside.root, "HPSv2: base")
        side = config.vision_config.image_size
        framing = partial(padded, side=side, mean=processor.mean, std=processor.std)
        self.clip = Clip(network, tokenizer_of(CLIPTokenizer, beside, "HPSv2: base"), framing)
        self._places = {"model": place, "base": beside}

    def origins(self) -> Mapping[str, str]:
        return origins(self._places)

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return SCALE * self.clip.cosines(image_NCHW, prompts)


def padded(image_NCHW: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The whole picture on a black square, as HPS v2 sees it."""
    longest = max(image_NCHW.shape[-2:])
    height, width = (round(edge * side / longest) for edge in image_NCHW.shape[-2:])
    small_NCHW = resized(image_NCHW, (height, width))  # not clamped, as the authors' is not
    across, down = side - width, side - height
    whole_NCHW = F.pad(small_NCHW, (across // 2, across - across // 2, down // 2, down - down // 2))
    return normalized(whole_NCHW, mean, std)
