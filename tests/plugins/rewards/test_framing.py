"""Resizing, cropping and padding against PIL's, in floating point and in 8 bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from alignkit_rewards.framing import Framing, processor_framing, resized
from alignkit_rewards.hpsv2 import padded

SIZES = [(64, 64), (97, 61), (40, 75), (20, 16), (512, 384)]


def image(height: int, width: int) -> Tensor:
    """A smooth picture with some noise, of 8 bits."""
    generator = torch.Generator().manual_seed(0)
    smooth_1CHW = F.interpolate(torch.rand(1, 3, 5, 5, generator=generator), (height, width), mode="bilinear")
    noise_1CHW = 0.1 * torch.randn(smooth_1CHW.shape, generator=generator)
    return ((smooth_1CHW + noise_1CHW).clamp(0, 1) * 255).round() / 255


def by_pil(image_1CHW: Tensor, size: tuple[int, int], resample: Image.Resampling) -> Tensor:
    """PIL's resizing of each channel in floating point, which it does not round."""
    channels = [Image.fromarray(channel_HW.numpy()) for channel_HW in image_1CHW[0]]
    rows = [torch.from_numpy(np.array(channel.resize(size[::-1], resample))) for channel in channels]
    return torch.stack(rows)[None]


@pytest.mark.parametrize(("mode", "resample"), [("bicubic", 3), ("bilinear", 2)])
@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_that_of_pil_but_for_its_rounding(
    size: tuple[int, int], mode: str, resample: int
) -> None:
    image_1CHW = image(*size)
    expected_1CHW = by_pil(image_1CHW, (48, 32), Image.Resampling(resample))
    assert_close(resized(image_1CHW, (48, 32), mode), expected_1CHW, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("size", SIZES)
def test_framing_is_that_of_the_processor_but_for_its_rounding(
    tmp_path: Path, size: tuple[int, int], side: int
) -> None:
    """It rounds to 8 bits after each of two passes: 1.08 of 255 at most here, and 0.32 on average."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    processor.save_pretrained(tmp_path)
    framing, image_1CHW = processor_framing(tmp_path, "Test"), image(*size)
    picture = Image.fromarray((image_1CHW[0] * 255).round().byte().permute(1, 2, 0).numpy())
    expected_1CHW = processor(picture, return_tensors="pt").pixel_values
    std_C11 = torch.tensor(framing.std)[:, None, None]
    difference_1CHW = (framing.frame(image_1CHW) - expected_1CHW).abs() * std_C11 * 255
    assert difference_1CHW.max() < 1.2
    assert difference_1CHW.mean() < 0.35


def test_a_picture_of_the_right_size_is_only_normalized(tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    processor.save_pretrained(tmp_path)
    image_1CHW = image(32, 32)
    picture = Image.fromarray((image_1CHW[0] * 255).round().byte().permute(1, 2, 0).numpy())
    expected_1CHW = processor(picture, return_tensors="pt").pixel_values
    assert_close(processor_framing(tmp_path, "Test").frame(image_1CHW), expected_1CHW, rtol=0, atol=1e-6)


def test_padding_keeps_the_whole_picture_on_black() -> None:
    """61 of 97 become round(61 * 32 / 97) = 20 of 32: 6 black columns on either side."""
    image_1CHW = image(97, 61)
    framed_1CHW = padded(image_1CHW, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    expected_1CHW = (by_pil(image_1CHW, (32, 20), Image.Resampling.BICUBIC) - 0.5) / 0.25
    assert_close(framed_1CHW[..., 6:26], expected_1CHW, rtol=0, atol=1e-4)
    assert (framed_1CHW[..., :6] == -2).all()
    assert (framed_1CHW[..., 26:] == -2).all()


@pytest.mark.parametrize(
    ("said", "framing"),
    [
        # as openai's CLIP says it, and a DINOv3
        (
            {"crop_size": 224, "do_center_crop": True, "resample": 3, "size": 224},
            Framing(shortest=224, crop=(224, 224)),
        ),
        (
            {"resample": 2, "size": {"height": 224, "width": 200}, "do_center_crop": None},
            Framing(size=(224, 200), mode="bilinear"),
        ),
    ],
)
def test_processors_say_it_in_two_ways(tmp_path: Path, said: dict[str, object], framing: Framing) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert processor_framing(tmp_path, "Test") == framing
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    assert processor_framing(tmp_path, "Test") == framing


def test_a_size_whatever_the_shape_is_taken() -> None:
    framing = Framing(mean=(0, 0, 0), std=(1, 1, 1), size=(24, 40), mode="bilinear")
    image_1CHW = image(97, 61)
    expected_1CHW = by_pil(image_1CHW, (24, 40), Image.Resampling.BILINEAR)
    assert_close(framing.frame(image_1CHW), expected_1CHW, rtol=0, atol=1e-5)


def test_processors_that_do_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^Test: '.*' says nothing of pictures: it has no preprocessor_conf"
    ):
        processor_framing(tmp_path, "Test")
    for said, got in (({"do_normalize": False}, "do_normalize false"), ({"resample": 1}, "resample 1")):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
        with pytest.raises(ValueError, match=rf"^Test: the processor in .* must resize .*; got {got}$"):
            processor_framing(tmp_path, "Test")
