"""Contact sheets. Suffixes: R rows; N images in a row; C H W."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 96
MARGIN = 4


def to_pictures(image_NCHW: Tensor) -> list[Image.Image]:
    """Converts images in [0, 1] to pictures."""
    byte_NHWC = (image_NCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(byte_HWC) for byte_HWC in byte_NHWC]


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """Lays pictures out in labelled rows and columns. Small ones are enlarged in whole pixels."""
    font = ImageFont.load_default(13)
    side = rows[0][0].width
    tile = side * max(1, TILE // side)
    left = MARGIN + max(round(font.getlength(label)) for label in row_labels) + MARGIN
    lines = [_wrapped(label, font, tile) for label in column_labels]
    top = MARGIN + 16 * max(len(line) for line in lines) + MARGIN
    step = tile + MARGIN
    sheet = Image.new("RGB", (left + step * len(column_labels), top + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, line in enumerate(lines):
        draw.multiline_text((left + step * column, MARGIN), "\n".join(line), "black", font)
    for row, (label, pictures) in enumerate(zip(row_labels, rows, strict=True)):
        draw.text((MARGIN, top + step * row + tile // 2 - 8), label, "black", font)
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + step * column, top + step * row))
    return sheet


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks a label between words; a single word that is too long is cut."""
    lines: list[str] = []
    for word in text.split() or [""]:
        while font.getlength(word) > width:
            word = word[:-1]
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines[:3]
