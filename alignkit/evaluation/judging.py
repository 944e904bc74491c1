"""How rewards and features are asked. Suffixes: N images; C H W; D width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.components import Features, Reward


@torch.no_grad()
def judged(judge: Reward | Features, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
    """Scores (N,) of a reward, or embeddings (N, D) of length 1, float64 on the CPU.

    Raises:
        ValueError: they are not finite numbers, as many as images.
    """
    is_reward = isinstance(judge, Reward)
    with torch.autocast(image_NCHW.device.type, enabled=False):
        said = judge(image_NCHW, prompts) if is_reward else judge(image_NCHW)
    if said.shape[:1] != (len(prompts),) or said.ndim != 2 - is_reward or not said.isfinite().all():
        wanted = "a finite number" if is_reward else "a vector of finite numbers"
        raise ValueError(
            f"{type(judge).__name__}: must give {wanted} for every image, got "
            f"{said.flatten()[:8].tolist()} in a shape of {list(said.shape)}"
        )
    said = said.double().cpu()
    return said if is_reward else F.normalize(said, dim=1)
