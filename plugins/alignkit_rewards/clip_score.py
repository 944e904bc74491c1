"""CLIPScore. Suffixes: N images; C H W."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from alignkit import Reward
from alignkit_rewards.clip import load_clip, origins

SCALE = 2.5


class CLIPScore(Reward):
    """How well a picture shows its prompt: 2.5 max(cosine, 0) (Hessel et al., 2021).

    The convention of the paper (https://arxiv.org/abs/2104.08718) and its code,
    https://github.com/jmhessel/clipscore/blob/459f821429a6a86feb22cef3a12fc2c634d6e093/clipscore.py#L113-L131:
    0 to 2.5, about 0.5 to 0.9. Others (torchmetrics, many papers on text-to-image) print 100 max(cosine, 0),
    which is 40 times this one. Of a prompt the first 77 tokens are read. Where the cosine is negative the
    score and its gradient are 0.

    Deviation: the paper uses ViT-B/32 and puts "A photo depicts" before every text; prompts for pictures
    mostly say what kind of picture, so nothing is put there unless ``prefix`` says so.

    Args:
        path: folder or hub id of a CLIP, with its tokenizer and preprocessor_config.json.
        revision: a hub id's branch, tag or commit; the known hub ids are pinned to a commit (``places.py``).
        prefix: what is put before every prompt; of the paper "A photo depicts ".
    """

    differentiable = True

    def __init__(
        self, path: str = "openai/clip-vit-large-patch14", revision: str | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.clip, self._places = load_clip(path, revision, path, revision, "CLIPScore")

    def origins(self) -> Mapping[str, str]:
        return origins(self._places)

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        texts = [self.prefix + prompt for prompt in prompts]
        return SCALE * self.clip.cosines(image_NCHW, texts).clamp(min=0)
