"""How the sheet looks: measures, colours, text in Pillow's built-in font, images with rounded corners."""

from PIL import Image, ImageDraw, ImageFont, ImageOps

Colour = tuple[int, int, int]

WIDTH = 1600
MARGIN = 56

PAPER: Colour = (250, 249, 246)
CARD: Colour = (255, 255, 255)
INK: Colour = (28, 30, 36)
MUTED: Colour = (122, 126, 136)
FAINT: Colour = (218, 218, 213)
GOLD: Colour = (214, 158, 32)
YES: Colour = (22, 140, 84)
NO: Colour = (190, 62, 54)
OTHER: Colour = (150, 150, 150)


def text(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    words: str,
    size: int,
    colour: Colour,
    anchor: str,
    *,
    bold: bool = False,
) -> None:
    """Writes one line; `anchor` is Pillow's: horizontal l, m, r, then vertical a (ascender) or m (middle)."""
    # The built-in font has one weight; a stroke in the text's own colour makes the other.
    stroke = size / 40 if bold else 0
    font = ImageFont.load_default(size)
    pen.text(at, words, fill=colour, font=font, anchor=anchor, stroke_width=stroke, stroke_fill=colour)


def length(words: str, size: int) -> float:
    """Width of the line in pixels."""
    return ImageFont.load_default(size).getlength(words)


def lines(words: str, size: int, width: int, limit: int) -> list[str]:
    """The text broken at spaces into at most `limit` lines of `width` pixels; what is cut off becomes dots."""
    left = words.split() or [""]
    broken: list[str] = []
    while left and len(broken) < limit:
        line = left.pop(0)
        while left and length(f"{line} {left[0]}", size) <= width:
            line = f"{line} {left.pop(0)}"
        if left and len(broken) == limit - 1:
            line = f"{line} …"
        while length(line, size) > width:
            line = line.removesuffix("…")[:-1] + "…"
        broken.append(line)
    return broken


def square(image: Image.Image, side: int) -> Image.Image:
    """The image scaled to a square of `side` pixels; of an image that is not square, the middle."""
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def paste(sheet: Image.Image, image: Image.Image, at: tuple[int, int], *, radius: int) -> None:
    """Pastes the image with rounded corners."""
    w, h = image.size
    # Pillow draws hard edges: the mask is drawn four times as large and shrunk, which smooths its corners.
    mask = Image.new("L", (4 * w, 4 * h), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * w - 1, 4 * h - 1), 4 * radius, fill=255)
    sheet.paste(image, at, mask.resize((w, h), Image.Resampling.LANCZOS))
