"""What the shipped judge sees in images. Suffixes: N images, D width of the judge's space, C H W."""

from collections.abc import Mapping

from torch import Tensor

from alignkit.components import Features
from alignkit_emoji.judge import Judge


class EmojiFeatures(Features):
    """The shipped judge's embeddings of images."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = Judge()

    def origins(self) -> Mapping[str, str]:
        return self.judge.origins()

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return self.judge.embed_images(image_NCHW)
