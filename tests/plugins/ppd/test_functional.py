"""Math of PPD: the second softmax, rows of one size, people between people, a judge asked twice.

Shape suffixes: N images; H heads; S places, C their channels; L user tokens, D their width; U users.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit_ppd.functional import even_rows, mixed, user_attention, verdict

N, S, C, L, D, HEADS = 3, 5, 8, 4, 6, 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def parts() -> dict[str, Tensor]:
    return {
        "query_NSC": normal(N, S, C, seed=1),
        "tokens_NLD": normal(N, L, D, seed=2),
        "key_CD": normal(C, D, seed=3),
        "value_CD": normal(C, D, seed=4),
    }


def test_is_softmax_attention_to_the_users_keys_and_values(parts):
    """Written out: per head, weights softmax(q k / sqrt(C / H)) over the L tokens, averaging their values."""
    query_NSHd, key_NLHd, value_NLHd = (
        x.unflatten(-1, (HEADS, C // HEADS))
        for x in (
            parts["query_NSC"],
            parts["tokens_NLD"] @ parts["key_CD"].T,
            parts["tokens_NLD"] @ parts["value_CD"].T,
        )
    )
    score_NHSL = torch.einsum("nshd,nlhd->nhsl", query_NSHd, key_NLHd) / math.sqrt(C / HEADS)
    weight_NHSL = score_NHSL.exp() / score_NHSL.exp().sum(-1, keepdim=True)
    expected_NSHd = torch.einsum("nhsl,nlhd->nshd", weight_NHSL, value_NLHd)
    assert_close(user_attention(**parts, num_heads=HEADS), expected_NSHd.flatten(2))


def test_gradient_matches_finite_differences(parts):
    names = list(parts)
    assert torch.autograd.gradcheck(
        lambda *values: user_attention(**dict(zip(names, values, strict=True)), num_heads=HEADS),
        tuple(value.requires_grad_() for value in parts.values()),
    )


def test_tokens_of_zero_give_exactly_zero_and_a_norm_with_bias_would_not(parts):
    """T2 of the method: IP-Adapter's Linear and LayerNorm turn nobody into tokens of norm sqrt(D)."""
    nobody = parts | {"tokens_NLD": torch.zeros(N, L, D, dtype=torch.float64)}
    assert torch.equal(user_attention(**nobody, num_heads=HEADS), torch.zeros(N, S, C, dtype=torch.float64))
    torch.manual_seed(0)
    usual = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D)).double()
    told = usual(nobody["tokens_NLD"])
    assert_close(told.norm(dim=-1), torch.full((N, L), math.sqrt(D), dtype=torch.float64), rtol=1e-2, atol=0)
    assert user_attention(**(nobody | {"tokens_NLD": told}), num_heads=HEADS).abs().max() > 0.1


def test_a_single_token_adds_the_same_everywhere(parts):
    """Softmax over one key is 1: the query does not matter. So an embedding gives several tokens."""
    one = parts | {"tokens_NLD": parts["tokens_NLD"][:, :1]}
    expected_NC = one["tokens_NLD"][:, 0] @ one["value_CD"].T
    assert_close(user_attention(**one, num_heads=HEADS), expected_NC[:, None].expand(N, S, C))
    several = user_attention(**parts, num_heads=HEADS)
    assert (several - several[:, :1]).abs().max() > 0.1


def test_order_of_tokens_does_not_matter_and_images_do_not_mix(parts):
    """T7: permutation within a user changes nothing; another user of one image changes that image alone."""
    told = user_attention(**parts, num_heads=HEADS)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(
        user_attention(**(parts | {"tokens_NLD": parts["tokens_NLD"][:, order]}), num_heads=HEADS), told
    )
    tokens_NLD = parts["tokens_NLD"].clone()
    tokens_NLD[1] = normal(L, D, seed=9)
    other = user_attention(**(parts | {"tokens_NLD": tokens_NLD}), num_heads=HEADS)
    assert torch.equal(other[[0, 2]], told[[0, 2]])
    assert (other[1] - told[1]).abs().max() > 0.1


def test_two_softmaxes_are_not_one_over_all_tokens(parts):
    """Tokens of zero appended to the text's keys and values take a share of the one softmax: not the base."""
    text_NLC = normal(N, 7, C, seed=5)
    identity = torch.eye(C, dtype=torch.float64)
    base = user_attention(parts["query_NSC"], text_NLC, identity, identity, num_heads=HEADS)
    longer_NLC = torch.cat([text_NLC, torch.zeros(N, L, C, dtype=torch.float64)], dim=1)
    appended = user_attention(parts["query_NSC"], longer_NLC, identity, identity, num_heads=HEADS)
    assert (appended - base).abs().max() > 0.1


def test_rows_get_one_size_and_nothing_stays_nothing():
    rows_LD = normal(L, D) * torch.tensor([1e-4, 1.0, 300.0, 0.0]).double()[:, None]
    even_LD = even_rows(rows_LD)
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert_close(even_LD.square().mean(-1), expected)
    assert torch.equal(even_LD[3], torch.zeros(D, dtype=torch.float64))
    assert_close(even_rows(-7 * rows_LD), -even_LD)


def test_shares_are_taken_in_the_tokens_type():
    tokens_ULD = normal(2, L, D)
    expected_LD = (tokens_ULD[0] + tokens_ULD[1]) / 2
    assert_close(mixed(tokens_ULD, torch.tensor([0.5, 0.5], dtype=torch.float32)), expected_LD)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixing_reproduces_its_ends_and_is_linear(share: float):
    """T6."""
    first_LD, second_LD = tokens_ULD = normal(2, L, D)
    between_LD = mixed(tokens_ULD, torch.tensor([share, 1 - share]).double())
    assert_close(between_LD, share * first_LD + (1 - share) * second_LD)
    if share == 1:
        assert torch.equal(between_LD, first_LD)


def test_outputs_mix_linearly_where_there_is_one_token_and_only_there(parts):
    """T6: mixing what two branches say is linear; mixing tokens is the same without a softmax to share."""
    tokens_UNLD = torch.stack([parts["tokens_NLD"], normal(N, L, D, seed=8)])
    for length, same in ((1, True), (L, False)):
        said_U = [
            user_attention(**(parts | {"tokens_NLD": t[:, :length]}), num_heads=HEADS) for t in tokens_UNLD
        ]
        between_NLD = 0.3 * tokens_UNLD[0, :, :length] + 0.7 * tokens_UNLD[1, :, :length]
        said = user_attention(**(parts | {"tokens_NLD": between_NLD}), num_heads=HEADS)
        assert torch.allclose(said, 0.3 * said_U[0] + 0.7 * said_U[1]) is same


@pytest.mark.parametrize(
    ("first", "swapped", "expected"), [(1, 2, 1.0), (2, 1, 0.0), (1, 1, 0.5), (2, 2, 0.5)]
)
def test_verdict_follows_the_picture_not_the_place(first: int, swapped: int, expected: float):
    """T10. With candidate and baseline exchanged, what was asked first is asked second."""
    assert verdict(first, swapped) == expected
    assert verdict(swapped, first) == 1 - expected
