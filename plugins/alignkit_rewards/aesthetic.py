"""LAION's aesthetic predictor. Suffixes: N images; C H W."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from alignkit import Reward
from alignkit_rewards.clip import load_pictures, origins
from alignkit_rewards.linear_head import linear_head
from alignkit_rewards.places import single_file
from alignkit_rewards.weights import read_tensors


class Aesthetic(Reward):
    """How beautiful people of SAC, LAION logos and AVA would call a picture, 1 to 10; the prompt is not read.

    Five linear layers over the embedding of CLIP ViT-L/14, of length 1:
    https://github.com/christophschuhmann/improved-aesthetic-predictor/blob/6934dd81792f086e613a121dbce43082cb8be85e/simple_inference.py.
    Most pictures get 4 to 7.

    Args:
        head: file of the five layers: safetensors, or a .pth of tensors; "owner/name/file" of a hub id, or
            local, such as sac+logos+ava1-l14-linearMSE.pth.
        head_revision: of the head's hub id.
        path: folder or hub id of the CLIP.
        revision: a hub id's branch, tag or commit; the known hub ids are pinned to a commit (``places.py``).
    """

    differentiable = True

    def __init__(
        self,
        head: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        head_revision: str | None = None,
        path: str = "openai/clip-vit-large-patch14",
        revision: str | None = None,
    ) -> None:
        super().__init__()
        place = single_file(head, revision=head_revision, owner="Aesthetic")
        self.pictures, places = load_pictures(path, revision, "Aesthetic")
        width = self.pictures.network.config.projection_dim
        weights = read_tensors(place.root, "Aesthetic")
        self.head = linear_head(weights, width, "", repr(head), "Aesthetic")
        self._places = {"head": place, **places}

    def origins(self) -> Mapping[str, str]:
        return origins(self._places)

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        weight = self.head[0].weight
        score_N1: Tensor = self.head(self.pictures(image_NCHW).to(weight))
        return score_N1[:, 0].float().to(image_NCHW.device)
