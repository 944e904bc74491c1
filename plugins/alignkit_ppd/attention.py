"""Decoupled cross-attention in a diffusers UNet.

Shape suffixes: N images; S places of a feature map, C its channels; L user tokens, D their width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from alignkit_ppd.functional import user_attention

# argument that the backbones of alignkit hand to attention processors
TOKENS = "tokens_NLD"
PROJECTION = "user_projection"


class UserAttention(nn.Module):
    """Processor of a text cross-attention: what it was, and a branch that reads the user.

    Without tokens nothing else runs, and tokens of zero add zero: then its output is the base's bit for bit.

    Args:
        attention: the layer that it is made for.
        width: width of the tokens.
        scale: factor of the branch.
        generator: draws the key projection; the value projection starts at zero.
    """

    def __init__(self, attention: Any, width: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = attention.processor, scale
        weight = attention.to_q.weight
        self.to_k, self.to_v = (
            nn.Linear(width, len(weight), bias=False, device=weight.device, dtype=weight.dtype)
            for _ in range(2)
        )
        bound = 1 / math.sqrt(width)
        drawn = torch.empty(self.to_k.weight.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.to_k.weight.copy_(drawn)
            self.to_v.weight.zero_()

    def __call__(  # diffusers looks up the names of its arguments, which those of ``forward`` would hide
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        tokens_NLD: Tensor | None = None,
    ) -> Tensor:
        """The layer's output, (N, S, C)."""
        told_NSC: Tensor = self.base(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if tokens_NLD is None:
            return told_NSC
        branch_NSC = user_attention(
            attn.to_q(hidden_states),
            tokens_NLD.to(hidden_states.dtype),
            self.to_k.weight,
            self.to_v.weight,
            num_heads=attn.heads,
        )
        # (text + branch) W_out = text W_out + branch W_out: so any processor can stand for the text's part
        return told_NSC + self.scale * F.linear(branch_NSC, attn.to_out[0].weight)


class Untold:
    """Processor of a layer that does not look at users: takes the tokens and leaves them.

    Args:
        base: the processor that it was.
    """

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        tokens_NLD: Tensor | None = None,
    ) -> Tensor:
        """The layer's output."""
        told: Tensor = self.base(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return told


def attach_branches(
    network: nn.Module, width: int, *, projected: int | None, scale: float, seed: int
) -> list[UserAttention]:
    """Gives every text cross-attention of a UNet a branch that reads users.

    Args:
        network: a UNet; it gets processors of its own for all attention layers.
        width: width of the tokens.
        projected: width that a projection, which all branches share, reduces the tokens to; none if None.
        scale: factor of the branches.
        seed: seed of the projections.

    Returns:
        The branches.

    Raises:
        ValueError: the network has no text cross-attention that this knows.
    """
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    if not any(layer.is_cross_attention for layer in layers):
        raise ValueError(
            f"UserTokens: {type(network).__name__} has no text cross-attention to stand beside; "
            "use a backbone with a UNet, such as StableDiffusion"
        )
    generator = torch.Generator().manual_seed(seed)
    if projected is not None:
        weight = layers[0].to_q.weight
        projection = nn.Linear(width, projected, bias=False, device=weight.device, dtype=weight.dtype)
        bound = math.sqrt(3 / width)  # keeps the size of the tokens
        drawn = torch.empty(projection.weight.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            projection.weight.copy_(drawn)
        network.add_module(PROJECTION, projection)
        network.register_forward_pre_hook(_projected, with_kwargs=True)
    branches = []
    for layer in layers:
        if layer.is_cross_attention:
            branches.append(UserAttention(layer, projected or width, scale, generator))
            layer.set_processor(branches[-1])
        else:
            layer.set_processor(Untold(layer.processor))
    return branches


def _projected(
    network: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Reduces the tokens once for all branches."""
    told = options.get("cross_attention_kwargs") or {}
    if told.get(TOKENS) is None:
        return arguments, options
    projection = network.get_submodule(PROJECTION)
    tokens_NLD = projection(told[TOKENS].to(next(projection.parameters()).dtype))
    return arguments, options | {"cross_attention_kwargs": {**told, TOKENS: tokens_NLD}}
