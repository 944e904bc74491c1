"""The branch in UNets: exactly the base without a user, and nothing but projections trained.

Shape suffixes: N images; S places, C their channels; L user tokens, D their width.
"""

import copy
import logging

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit_ppd.attention import PROJECTION, UserAttention, attach_branches
from alignkit_ppd.functional import user_attention

N, L, D, TEXT = 3, 4, 6, 16


def plain_unet() -> UNet2DConditionModel:
    """Attention of two widths, 8 and 16."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def xl_unet() -> UNet2DConditionModel:
    """As SDXL: several transformer layers per block, and conditions from pooled text and sizes."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=TEXT,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=10 + 6 * 8,
    )


@pytest.fixture(params=[plain_unet, xl_unet])
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def inputs() -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(N, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([3, 500, 900]),
        "encoder_hidden_states": torch.randn(N, 5, TEXT, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(N, 10, generator=generator),
            "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]]).repeat(N, 1),
        },
    }


def tokens_NLD(seed: int = 2) -> Tensor:
    return torch.randn(N, L, D, generator=torch.Generator().manual_seed(seed))


def run(network: nn.Module, inputs: dict[str, object], told: Tensor | None) -> Tensor:
    kwargs = None if told is None else {"tokens_NLD": told}
    return network(**inputs, cross_attention_kwargs=kwargs).sample


def attached(
    unet: nn.Module, *, projected: int | None = None, scale: float = 1.0, trained: bool = True
) -> tuple[nn.Module, list[UserAttention]]:
    """A copy with branches, as after some training if ``trained``."""
    network = copy.deepcopy(unet)
    network.requires_grad_(False)
    branches = attach_branches(network, D, projected=projected, scale=scale, seed=0)
    if trained:
        for number, branch in enumerate(branches):
            nn.init.normal_(branch.to_v.weight, generator=torch.Generator().manual_seed(number))
    return network, branches


@pytest.mark.parametrize("projected", [None, 5])
@pytest.mark.parametrize(
    ("told", "scale", "trained"),
    [
        (None, 1.0, True),
        (torch.zeros(N, L, D), 1.0, True),
        (tokens_NLD(), 0.0, True),
        (tokens_NLD(), 1.0, False),
    ],
    ids=["no tokens", "tokens of zero", "scale 0", "value projection 0"],
)
def test_nobody_is_the_base_bit_for_bit(unet, inputs, told, scale, trained, projected):
    """T1, T2 and, as dropping the user means tokens of zero, T8: maximal difference 0."""
    network, _ = attached(unet, projected=projected, scale=scale, trained=trained)
    with torch.no_grad():
        assert torch.equal(run(network, inputs, told), run(unet, inputs, None))
        assert not torch.allclose(
            run(attached(unet)[0], inputs, tokens_NLD()), run(unet, inputs, None), atol=1e-3
        )


def test_branch_is_added_before_the_output_projection(inputs):
    """``(softmax(..) V + scale softmax(..) V_u) W_out + b``, the text's part recomputed without diffusers."""
    torch.manual_seed(0)
    layer = Attention(query_dim=8, cross_attention_dim=TEXT, heads=2, dim_head=4)
    x_NSC, text_NLD = torch.randn(N, 9, 8), torch.randn(N, 5, TEXT)
    text_NSC = user_attention(layer.to_q(x_NSC), text_NLD, layer.to_k.weight, layer.to_v.weight, num_heads=2)
    branch = UserAttention(layer, D, 0.7, torch.Generator().manual_seed(0))
    nn.init.normal_(branch.to_v.weight)
    user_NSC = user_attention(
        layer.to_q(x_NSC), tokens_NLD(), branch.to_k.weight, branch.to_v.weight, num_heads=2
    )
    layer.set_processor(branch)
    said = layer(x_NSC, encoder_hidden_states=text_NLD, tokens_NLD=tokens_NLD())
    assert_close(said, layer.to_out[0](text_NSC + 0.7 * user_NSC))


def test_every_text_attention_has_a_branch_of_its_width(unet):
    network, branches = attached(unet)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Attention)}
    assert {name.rpartition(".")[2] for name in layers} == {"attn1", "attn2"}
    ours = [layer.processor for name, layer in layers.items() if name.endswith("attn2")]
    assert ours == branches
    assert len(branches) * 2 == len(layers)
    for layer in layers.values():
        if isinstance(layer.processor, UserAttention):
            assert layer.processor.to_v.weight.shape == (layer.to_q.out_features, D)


@pytest.mark.parametrize("projected", [None, 5])
def test_only_projections_are_trained(unet, inputs, projected):
    """T3: the base gets no gradient and does not change; keys learn once values are not zero."""
    network, _ = attached(unet, projected=projected)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    ends = ("processor.to_k.weight", "processor.to_v.weight", f"{PROJECTION}.weight")
    assert trained == {name for name in before if name.endswith(ends)}
    assert any(name.startswith(PROJECTION) for name in trained) == (projected is not None)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    run(network, inputs, tokens_NLD()).square().mean().backward()
    optimizer.step()
    for name, weight in network.named_parameters():
        assert (weight.grad is not None) == (name in trained), name
        assert torch.equal(weight, before[name]) != (name in trained), name


def test_zero_values_learn_at_the_first_step_and_keys_at_the_second(unet, inputs):
    """With a gate of zero beside values of zero neither would ever move."""
    network, branches = attached(unet, trained=False)
    run(network, inputs, tokens_NLD()).square().mean().backward()
    assert all(branch.to_v.weight.grad.abs().max() > 0 for branch in branches)
    assert all(branch.to_k.weight.grad.abs().max() == 0 for branch in branches)
    with torch.no_grad():
        for branch in branches:
            branch.to_v.weight -= branch.to_v.weight.grad
    run(network, inputs, tokens_NLD()).square().mean().backward()
    assert all(branch.to_k.weight.grad.abs().max() > 0 for branch in branches)


@pytest.mark.parametrize("projected", [None, 5])
def test_gradient_checkpointing_changes_nothing(unet, inputs, projected):
    gradients = []
    for checkpointing in (False, True):
        network, _ = attached(unet, projected=projected)
        network.train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        run(network, inputs, tokens_NLD()).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    assert gradients[0]
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain)


def test_images_with_different_users_do_not_mix(unet, inputs):
    """T7, through the whole network: another user in one row changes that row alone."""
    network, _ = attached(unet)
    told, other = tokens_NLD(), tokens_NLD()
    other[1] = tokens_NLD(seed=5)[1]
    with torch.no_grad():
        first, second = run(network, inputs, told), run(network, inputs, other)
    assert_close(second[[0, 2]], first[[0, 2]], rtol=0, atol=1e-6)
    assert (second[1] - first[1]).abs().max() > 1e-3


def test_projection_is_the_product_of_both_matrices(unet, inputs):
    """Tokens through one matrix and then another: as branches that hold the product."""
    small, narrow = attached(unet, projected=5)
    large, wide = attached(unet)
    projection = small.get_submodule(PROJECTION).weight
    with torch.no_grad():
        for reduced, whole in zip(narrow, wide, strict=True):
            whole.to_k.weight.copy_(reduced.to_k.weight @ projection)
            whole.to_v.weight.copy_(reduced.to_v.weight @ projection)
        assert_close(run(small, inputs, tokens_NLD()), run(large, inputs, tokens_NLD()), rtol=1e-4, atol=1e-5)


def test_any_processor_can_stand_for_the_texts_part(unet, inputs):
    """Here diffusers' own without fused attention; it is called as it was."""
    told, _ = attached(unet)
    unet.set_attn_processor(AttnProcessor())
    network, branches = attached(unet)
    assert all(type(branch.base) is AttnProcessor for branch in branches)
    with torch.no_grad():
        assert torch.equal(run(network, inputs, torch.zeros(N, L, D)), run(unet, inputs, None))
        assert_close(
            run(network, inputs, tokens_NLD()), run(told, inputs, tokens_NLD()), rtol=1e-4, atol=1e-5
        )


def test_no_layer_is_told_what_it_does_not_know(unet, inputs, caplog: pytest.LogCaptureFixture):
    """Diffusers hands the tokens to self-attention, too, and warns where a processor does not take them."""
    logger = logging.getLogger("diffusers.models.attention_processor")
    logger.addHandler(caplog.handler)
    try:
        with torch.no_grad():
            run(unet, inputs, tokens_NLD())
            assert "are not expected by" in caplog.text
            caplog.clear()
            run(attached(unet)[0], inputs, tokens_NLD())
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_seed_alone_decides_the_projections(unet):
    states = []
    for _ in range(2):
        states.append([branch.to_k.weight for branch in attached(unet)[1]])
        torch.randn(3)
    for first, second in zip(*states, strict=True):
        assert torch.equal(first, second)
    assert_close(states[0][0].std().item(), 1 / (3 * D) ** 0.5, rtol=0.3, atol=0)


def test_network_without_text_attention_is_refused():
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    with pytest.raises(ValueError, match=r"^UserTokens: UNet2DModel has no text cross-attention"):
        attach_branches(network, D, projected=None, scale=1.0, seed=0)
