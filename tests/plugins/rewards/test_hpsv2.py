"""HPS v2 against open_clip's layout in plain torch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from alignkit.testing.pipelines import tiny_tokenizer
from alignkit_rewards.framing import CLIP_MEAN, CLIP_STD
from alignkit_rewards.hpsv2 import HPSv2
from alignkit_rewards.open_clip_keys import to_transformers
from tests.plugins.rewards.models import SIDE, open_clip, tiny_clip, tiny_hps

PROMPTS = ["a red apple", "a very long and winding road of many letters", "plum"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape: its weights must not be read."""
    folder = tiny_clip(tmp_path_factory.mktemp("base"), seed=5)
    (folder / "model.safetensors").unlink()
    return folder


def expected(pixel_NCHW: Tensor) -> Tensor:
    """100 cosines of framed pictures and PROMPTS, by the module that the weights come from."""
    model = open_clip()
    tokens = tiny_tokenizer()(PROMPTS, truncation=True, max_length=16)["input_ids"]
    end_N = torch.tensor([len(row) - 1 for row in tokens])
    # zeros after the end, where transformers has end marks
    token_NL = torch.tensor([row + [0] * (16 - len(row)) for row in tokens])
    with torch.no_grad():
        image_ND, text_ND = model.visual(pixel_NCHW), model.text(token_NL, end_N)
    return 100 * F.cosine_similarity(image_ND, text_ND)


def normalized(image_NCHW: Tensor) -> Tensor:
    mean_C11, std_C11 = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (image_NCHW - mean_C11) / std_C11


def test_score_is_a_hundred_cosines_of_open_clips_network(base: Path, tmp_path: Path) -> None:
    image_NCHW = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    score_N = HPSv2(str(tiny_hps(tmp_path)), base=str(base))(image_NCHW, PROMPTS)
    expected_N = expected(normalized(image_NCHW))
    assert_close(score_N, expected_N, rtol=0, atol=1e-3)  # of 100: 1e-5 in the cosine
    assert expected_N.std() > 5


def test_a_wide_picture_is_shown_whole_on_black(base: Path, tmp_path: Path) -> None:
    """48 x 16 become 32 x 11: 10 black rows above, 11 below."""
    image_NCHW = torch.rand(3, 3, 16, 48, generator=torch.Generator().manual_seed(0))
    whole_NCHW = torch.zeros(3, 3, SIDE, SIDE)
    whole_NCHW[:, :, 10:21] = F.interpolate(image_NCHW, (11, 32), mode="bicubic", antialias=True)
    score_N = HPSv2(str(tiny_hps(tmp_path)), base=str(base))(image_NCHW, PROMPTS)
    assert_close(score_N, expected(normalized(whole_NCHW)), rtol=0, atol=1e-3)


def test_safetensors_are_read_as_well_and_told(base: Path, tmp_path: Path) -> None:
    save_file(open_clip().state_dict(), tmp_path / "hps.safetensors")
    image_NCHW = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    safe = HPSv2(str(tmp_path / "hps.safetensors"), base=str(base))
    pickled = HPSv2(str(tiny_hps(tmp_path)), base=str(base))
    assert_close(safe(image_NCHW, PROMPTS), pickled(image_NCHW, PROMPTS), rtol=0, atol=0)
    assert len(safe.provenance()["model sha256 hps.safetensors"]) == 64


def test_half_precision_is_held_in_single(base: Path, tmp_path: Path) -> None:
    """As weights that were compressed for publication are."""
    weights = {name: weight.half() for name, weight in open_clip().state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "half.pt")
    reward = HPSv2(str(tmp_path / "half.pt"), base=str(base))
    assert {parameter.dtype for parameter in reward.parameters()} == {torch.float32}
    image_NCHW = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert_close(reward(image_NCHW, PROMPTS), expected(normalized(image_NCHW)), rtol=0, atol=0.5)


def test_every_weight_of_open_clip_gets_one_of_transformers() -> None:
    weights = open_clip().state_dict()
    found, unknown = to_transformers(weights)
    assert unknown == []
    assert sum(weight.numel() for weight in found.values()) == sum(w.numel() for w in weights.values())


@pytest.mark.parametrize("name", ["score_predictor.weight", "transformer.resblocks.0.attn.ln.weight"])
def test_weights_that_open_clips_model_has_not_are_refused(base: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "hps.safetensors"
    save_file({**open_clip().state_dict(), name: torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=rf"^HPSv2: '.*' has 1 weights that .* has not, such as {name}; "):
        HPSv2(str(path), base=str(base))


def test_a_file_of_another_shape_than_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    path, weights = tmp_path / "hps.safetensors", open_clip().state_dict()
    lost, norm = weights.pop("ln_final.bias"), r"text_model\.final_layer_norm\.bias"
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"^HPSv2: '.*' lacks 1 weights of a CLIPModel, such as {norm}; it"):
        HPSv2(str(path), base=str(base))
    save_file({**weights, "ln_final.bias": lost[1:]}, path)
    with pytest.raises(ValueError, match=rf"^HPSv2: '.*' has {norm} of shape \(31,\), but .* needs \(32,\)"):
        HPSv2(str(path), base=str(base))
