"""PickScore. Suffixes: N images; C H W."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from alignkit import Reward
from alignkit_rewards.clip import load_clip, origins


class PickScore(Reward):
    """What people of Pick-a-Pic would prefer (Kirstain et al., 2023, https://arxiv.org/abs/2305.01569).

    The model's scale (about 100) times the cosine of a picture and its prompt, as the authors compute it:
    https://github.com/yuvalkirstain/PickScore/blob/18443d6142232540c9cb795540b4969267fbe89d/README.md#inference-with-pickscore.
    About 15 to 26; papers print this, or a hundredth of it. A difference of d between two pictures of a
    prompt means that the first is preferred with probability sigmoid(d). Of a prompt the first 77 tokens are
    read.

    Args:
        path: folder or hub id of the model.
        revision: a hub id's branch, tag or commit; the known hub ids are pinned to a commit (``places.py``).
        processor: folder or hub id of the tokenizer and of what is done to pictures.
        processor_revision: of the processor's hub id.
    """

    differentiable = True

    def __init__(
        self,
        path: str = "yuvalkirstain/PickScore_v1",
        revision: str | None = None,
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        processor_revision: str | None = None,
    ) -> None:
        super().__init__()
        self.clip, self._places = load_clip(path, revision, processor, processor_revision, "PickScore")

    def origins(self) -> Mapping[str, str]:
        return origins(self._places)

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.clip.scale.to(image_NCHW.device) * self.clip.cosines(image_NCHW, prompts)
