"""Pictures as they come: read right, or refused by name. Nothing else ever leaves a decoder."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor
from torch.testing import assert_close

from alignkit.data.pictures import FORMATS, Crop, decode, picture_size

SIDE = 8


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels_HWC = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HWC)


def pixels(image_CHW: Tensor) -> Tensor:
    """Bytes of a decoded picture, HWC."""
    return ((image_CHW + 1) * 127.5).round().byte().permute(1, 2, 0)


def read(data: bytes, side: int = SIDE) -> Tensor:
    return pixels(decode(data, (side, side), "pair 7").image_CHW)


def of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB")))


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1 << 20) + b"IDAT" + zlib.compress(b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_exact_formats_keep_their_pixels(format: str) -> None:
    image = noise(SIDE, SIDE)
    assert torch.equal(read(encoded(image, format)), of(image))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_other_formats_keep_their_colours(format: str) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(Image.new("RGB", (SIDE, SIDE), (200, 60, 30)), format, quality=95)
    expected_HWC = torch.tensor([200, 60, 30]).expand(SIDE, SIDE, 3)
    assert_close(read(data).int(), expected_HWC.int(), atol=6, rtol=0)


def test_cmyk_is_read_as_its_colours() -> None:
    """Full cyan takes the red away, and nothing else."""
    data = encoded(Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)), "JPEG", quality=95)
    assert_close(read(data).int(), torch.tensor([0, 255, 255]).expand(SIDE, SIDE, 3).int(), atol=4, rtol=0)


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 4, SIDE))
    image.paste((0, 0, 0, 127), (4, 0, 6, SIDE))  # half black on white is grey: 255 * (1 - 127/255)
    expected_W3 = torch.tensor([[0, 0, 200]] * 4 + [[128] * 3] * 2 + [[255] * 3] * 2, dtype=torch.uint8)
    for data in (encoded(image), encoded(image, "WEBP", lossless=True)):
        assert torch.equal(read(data), expected_W3.expand(SIDE, SIDE, 3))


def test_transparent_colours_of_a_palette_are_white() -> None:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (0, 0, 4, SIDE))
    expected_W3 = torch.tensor([[0, 0, 200]] * 4 + [[255] * 3] * 4, dtype=torch.uint8)
    for transparency in (0, b"\x00\xff"):
        data = encoded(image, transparency=transparency)
        assert torch.equal(read(data), expected_W3.expand(SIDE, SIDE, 3))


def test_sixteen_bits_become_eight() -> None:
    """Divided by 257 and rounded; Pillow's own conversion makes white of all above 255."""
    value_HW = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    expected_HW = torch.from_numpy(np.round(value_HW / 257).astype(np.uint8))
    for format in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(value_HW), format)
        assert torch.equal(read(data), expected_HW[..., None].expand(SIDE, SIDE, 3))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(orientation: int, format: str) -> None:
    """Written as a camera does that was held another way: undoing the turn gives the scene back."""
    scene = noise(12, 6)
    undone = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene if undone is None else scene.transpose(undone)
    data = encoded(stored, format, exif=exif.tobytes())
    picture = decode(data, (6, 12), "pair 7")
    assert torch.equal(pixels(picture.image_CHW), of(scene))
    assert picture.frame_4.tolist() == [6, 12, 0, 0]
    assert picture_size(data, "pair 7") == (6, 12)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_read(format: str) -> None:
    colours = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(colours[0], format, save_all=True, append_images=colours[1:], **options)
    assert torch.equal(read(data), of(colours[0]))


def test_a_truncated_jpeg_is_refused_by_name() -> None:
    data = encoded(noise(64, 64), "JPEG")
    with pytest.raises(ValueError, match=r"^pair 7: its picture cannot be read \(\d+ bytes\): .*truncated"):
        decode(data[: len(data) // 2], (SIDE, SIDE), "pair 7")


def test_nothing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^pair 7: its picture cannot be read \(0 bytes\)"):
        decode(b"", (SIDE, SIDE), "pair 7")
    with pytest.raises(ValueError, match=r"^pair 7: its picture cannot be read \(0 bytes\)"):
        picture_size(b"", "pair 7")


@pytest.mark.parametrize("width", [9_000, 12_000, 30_000])
def test_a_huge_picture_is_never_decoded(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """9,000 squared is above our limit, 12,000 where Pillow warns, 30,000 where it refuses, too."""

    def never(self: Image.Image) -> None:
        raise AssertionError("was decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    with pytest.raises(ValueError, match=r"^pair 7: its picture .*pixels"):
        decode(png_header(width, width), (SIDE, SIDE), "pair 7")
    with pytest.raises(ValueError, match=r"^pair 7: its picture .*pixels"):
        picture_size(png_header(width, width), "pair 7")


def test_the_limit_of_pixels_is_a_setting() -> None:
    data = encoded(noise(11, 10))
    assert decode(data, (SIDE, SIDE), "pair 7", max_pixels=110).image_CHW.shape == (3, SIDE, SIDE)
    with pytest.raises(
        ValueError, match=r"^pair 7: its picture has 11 x 10 pixels, more than max_pixels 109"
    ):
        decode(data, (SIDE, SIDE), "pair 7", max_pixels=109)


def test_a_thread_of_pixels_is_not_blown_up() -> None:
    """1 x 4,000 resized to a shorter side of 512 is 512 x 2,048,000: more than a thousand megapixels."""
    data = encoded(noise(1, 4_000))
    message = r"^pair 7: its picture, of 1 x 4000, resized, has 512 x 2048000 pixels, more than max_pixels"
    with pytest.raises(ValueError, match=message):
        decode(data, (512, 512), "pair 7")


def test_formats_that_start_programs_are_not_read() -> None:
    assert not {"EPS", "WMF"} & set(FORMATS)
    eps = encoded(noise(SIDE, SIDE), "EPS")
    with pytest.raises(ValueError, match="cannot identify image file"):
        decode(eps, (SIDE, SIDE), "pair 7")


def test_pixels_of_unknown_range_are_refused() -> None:
    for image in (Image.new("F", (SIDE, SIDE), 0.5), Image.new("I", (SIDE, SIDE), 1 << 20)):
        with pytest.raises(ValueError, match=r"^pair 7: its picture cannot be read .*its pixels"):
            decode(encoded(image, "TIFF"), (SIDE, SIDE), "pair 7")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut off or doubled."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 12)):
        found[draw.randrange(len(found))] = draw.randrange(256)
    cut = draw.randrange(len(found)) if draw.random() < 0.3 else len(found)
    return bytes(found[:cut]) + bytes(found[: draw.randrange(40)] if draw.random() < 0.2 else b"")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of some damage, and reads on
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_bytes_are_read_or_refused_and_nothing_else(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    monkeypatch.chdir(tmp_path)
    draw, data, refused = random.Random(0), encoded(noise(20, 14), format), []
    for _ in range(150):
        try:
            picture = decode(damaged(data, draw), (SIDE, SIDE), "pair 7", max_pixels=1_000_000)
            assert picture.image_CHW.shape == (3, SIDE, SIDE)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert all(reason.startswith("pair 7: its picture") for reason in refused)
    assert not list(tmp_path.iterdir())


def stripes(width: int, height: int) -> Image.Image:
    """Column number in red, row number in green."""
    pixels_HWC = np.zeros((height, width, 3), np.uint8)
    pixels_HWC[..., 0] = np.arange(width)
    pixels_HWC[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels_HWC)


@pytest.mark.parametrize(
    ("crop", "left"),
    [(Crop(), 6), (Crop(right=0.0), 0), (Crop(right=1.0), 12), (Crop(down=0.9, right=0.25), 3)],
)
def test_the_crop_is_where_it_says(crop: Crop, left: int) -> None:
    picture = decode(encoded(stripes(20, 8)), (8, 8), "pair 7", crop)
    assert pixels(picture.image_CHW)[0, :, 0].tolist() == list(range(left, left + 8))
    assert picture.frame_4.tolist() == [8, 20, 0, left]


def test_a_mirrored_picture_is_cropped_as_any_other() -> None:
    """The crop says what is cut off of the mirrored picture, as its frame tells SDXL."""
    picture = decode(encoded(stripes(20, 8)), (8, 8), "pair 7", Crop(right=0.25, flipped=True))
    assert pixels(picture.image_CHW)[0, :, 0].tolist() == [19 - column for column in range(3, 11)]
    assert picture.frame_4.tolist() == [8, 20, 0, 3]
    whole = decode(encoded(stripes(8, 8)), (8, 8), "pair 7", Crop(flipped=True))
    assert pixels(whole.image_CHW)[0, :, 0].tolist() == list(range(7, -1, -1))


def test_the_frame_is_of_the_original_and_of_the_crop_after_resizing() -> None:
    picture = decode(encoded(noise(64, 40)), (8, 8), "pair 7")
    assert picture.frame_4.tolist() == [40, 64, 0, 2]  # resized to 8 x 13, of which 2 and 3 are cut off
    assert picture.frame_4.dtype == torch.int64


@pytest.mark.parametrize(("size", "frame"), [((8, 16), [20, 30, 1, 0]), ((16, 8), [20, 30, 0, 8])])
def test_a_picture_covers_shapes_that_are_no_squares(size: tuple[int, int], frame: list[int]) -> None:
    picture = decode(encoded(noise(30, 20)), size, "pair 7")
    assert picture.image_CHW.shape == (3, *size)
    assert picture.frame_4.tolist() == frame
