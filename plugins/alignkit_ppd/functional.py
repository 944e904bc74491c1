"""Math of PPD.

Shape suffixes: N images; S places of a feature map, C its channels; L user tokens, D their width; U users.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def user_attention(
    query_NSC: Tensor, tokens_NLD: Tensor, key_CD: Tensor, value_CD: Tensor, *, num_heads: int
) -> Tensor:
    """The second softmax of decoupled cross-attention: what the places of a picture read of a user.

    ``softmax(Q K^T / sqrt(C / heads)) V`` per head with ``K = tokens W_k``, ``V = tokens W_v`` and the query
    of the text's attention; Dang et al., 2025, after IP-Adapter (Ye et al., 2023,
    https://arxiv.org/abs/2308.06721). Its result is to be added before the output projection that both
    share. Without biases, tokens of zero give exactly zero.

    Args:
        query_NSC: query of the text's attention.
        tokens_NLD: user tokens, in any order.
        key_CD: ``W_k``, transposed as in ``nn.Linear``.
        value_CD: ``W_v``, likewise.
        num_heads: number of heads; divides C.

    Returns:
        One vector per place, (N, S, C). With a single token it is the same at every place.
    """
    key_NLC, value_NLC = F.linear(tokens_NLD, key_CD), F.linear(tokens_NLD, value_CD)
    heads = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query_NSC, key_NLC, value_NLC))
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def even_rows(rows_LD: Tensor) -> Tensor:
    """Rows of mean square 1, whose sizes differ a lot between layers; rows of zero stay zero."""
    return math.sqrt(rows_LD.shape[-1]) * F.normalize(rows_LD, dim=-1)


def mixed(tokens_ULD: Tensor, weight_U: Tensor) -> Tensor:
    """Tokens of somebody between several users, (L, D).

    Args:
        tokens_ULD: tokens of each.
        weight_U: share of each, >= 0; they sum to 1.
    """
    return torch.einsum("uld,u->ld", tokens_ULD, weight_U.to(tokens_ULD.dtype))


def verdict(first: int, swapped: int) -> float:
    """What a judge says who was asked twice, the second time with both pictures swapped.

    The protocol of the authors' evaluation (https://github.com/Asap7772/Personalized-Text-To-Image-Diffusion):
    only an answer that follows the picture counts.

    Args:
        first: 1 or 2, which place the judge chose while the candidate stood first.
        swapped: which it chose while the candidate stood second.

    Returns:
        1 where the candidate won, 0 where the other one did, 0.5 for a tie.

    >>> verdict(1, 2), verdict(2, 1), verdict(1, 1)
    (1.0, 0.0, 0.5)
    """
    return ((first == 1) + (swapped == 2)) / 2
