"""From the bytes of a picture to pixels, whatever the bytes are. Shape suffixes: C H W."""

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# what browsers show, and TIFF; no format whose decoder starts a program, as that of EPS does
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000
# from here on Pillow warns, and refuses twice as many
MOST_PIXELS = 89_478_485
ORIENTATION = 0x0112  # of Exif
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width


class Crop(NamedTuple):
    """Which part of a picture is read, in terms that fit pictures of every size.

    Args:
        down: of what is cut off vertically, the share that is cut off at the top.
        right: of what is cut off horizontally, the share that is cut off on the left.
        flipped: whether left and right are exchanged before.
    """

    down: float = 0.5
    right: float = 0.5
    flipped: bool = False


CENTRE = Crop()


class TooManyPixelsError(ValueError):
    """A picture is too large to be decoded."""


class Picture(NamedTuple):
    """A decoded picture.

    Args:
        image_CHW: RGB in [-1, 1].
        frame_4: height and width of the original, and top and left of the crop after resizing, in pixels;
            int64.
    """

    image_CHW: Tensor
    frame_4: Tensor


def decode(
    data: bytes, size: tuple[int, int], owner: str, crop: Crop = CENTRE, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Decodes a picture, resized so that it covers the given size, and cropped to it.

    It is turned upright as its Exif orientation says; transparent pixels are on white; 16 bits become 8; of
    an animation it is the first picture. Nothing is decoded of a picture that has too many pixels.

    Args:
        data: the encoded picture, of one of ``FORMATS``.
        size: height and width that are asked for, pixels.
        owner: what messages call it.
        crop: which part of it is read.
        max_pixels: the most that it may have, and that it may have once it is resized.

    Raises:
        ValueError: the bytes are no picture, or one that is too large.
    """
    image = whole_picture(data, owner, max_pixels)
    (height, width), frame = size, [image.height, image.width, 0, 0]
    if crop.flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if image.size != (width, height):
        whole = covering(image.size, (width, height))
        _check_pixels(
            *whole, f"{owner}: its picture, of {image.width} x {image.height}, resized,", max_pixels
        )
        left, top = _place(whole[0] - width, crop.right), _place(whole[1] - height, crop.down)
        image = image.resize(whole, Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + width, top + height))
        frame[2:] = top, left
    image_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    return Picture(image_CHW, torch.tensor(frame))


def whole_picture(data: bytes, owner: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as ``decode`` reads it, before it is resized.

    Raises:
        ValueError: the bytes are no picture, or one that is too large.
    """
    image = _opened(data, owner, max_pixels)
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise anything on damaged bytes, MemoryError and KeyError among it
        raise _unreadable(data, owner, error) from error


def covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which a picture just covers what is wanted."""
    scale = max(ask / side for ask, side in zip(wanted, size, strict=True))
    width, height = (max(ask, round(side * scale)) for ask, side in zip(wanted, size, strict=True))
    return width, height


def framed(max_pixels: int) -> str:
    """What ``decode`` makes of a picture, for those who keep it: to be changed with it."""
    return f"upright, on white, shorter side resized (bicubic), centre; at most {max_pixels} pixels"


def picture_size(data: bytes, owner: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture, upright, from its header alone.

    Raises:
        ValueError: the bytes are no picture, or one that is too large.
    """
    image = _opened(data, owner, max_pixels)
    # Pillow would decode a PNG to look for Exif behind its pixels; of a TIFF it has turned the size already
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return image.height, image.width
    try:
        sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    except Exception as error:  # as in decode
        raise _unreadable(data, owner, error) from error
    return (image.width, image.height) if sideways else (image.height, image.width)


def _opened(data: bytes, owner: str, max_pixels: int) -> Image.Image:
    """A picture of which only the header was read."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # as in decode
        raise _unreadable(data, owner, error) from error
    _check_pixels(*image.size, f"{owner}: its picture", max_pixels)
    return image


def _unreadable(data: bytes, owner: str, error: Exception) -> ValueError:
    reason = str(error) or type(error).__name__
    kind = TooManyPixelsError if isinstance(error, Image.DecompressionBombError) else ValueError
    return kind(f"{owner}: its picture cannot be read ({len(data)} bytes): {reason}")


def _check_pixels(width: int, height: int, what: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{what} has {width} x {height} pixels, more than max_pixels {max_pixels}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        value_HW = np.asarray(image).astype(np.int64)
        if value_HW.max(initial=0) > 0xFFFF:
            raise ValueError("its pixels have 32 bits; 8 and 16 can be read")
        # 65535 / 257 = 255; Pillow's own conversion cuts off at 255
        image = Image.fromarray(((value_HW + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    elif image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("RGB")


def _place(cut: int, share: float) -> int:
    """Pixels that are cut off before, of those that are cut off in all."""
    return int(np.ceil(cut * share - 0.5))
