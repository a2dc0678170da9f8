"""A photograph from a file, upright and in colour, in the size that a model reads."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_STRETCH = 8  # of one side over the other: beyond, nothing could be seen in a panel
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")

# Pillow knows more; some of those run programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read_photograph(path: Path) -> Image.Image:
    """An RGB image, turned as its EXIF orientation says, its transparent parts white; the first frame of many.

    Raises:
        ValueError: no such file, not an image, or a damaged one.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not an image' if path.is_dir() else 'no such file'}")
    try:
        with warnings.catch_warnings():
            # What Pillow warns of is half as large as what it refuses, and damaged EXIF matters to nobody here.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as file:
                return in_colour(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image in a format that Pillow reads") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: an image that cannot be read ({error})") from error


def in_colour(image: Image.Image) -> Image.Image:
    """RGB of any mode."""
    if image.mode in SIXTEEN_BITS:  # Pillow would cut off everything above 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def fit(image: Image.Image, img_size: tuple[int, int], aspect: str, smallest_px: int) -> Image.Image:
    """The photograph at the number of pixels that a model is made for.

    Args:
        img_size: H, W in pixels.
        aspect: "crop" cuts the centre to the shape of `img_size`; "keep" changes the shape to the photograph's, with
            as many pixels in all.
        smallest_px: No side becomes shorter than this.

    Raises:
        ValueError: too long and narrow to be kept.
    """
    height, width = img_size
    if aspect == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if max(image.size) > MAX_STRETCH * min(image.size):
        raise ValueError(
            f"{image.width} x {image.height} px: one side is more than {MAX_STRETCH} times the other; "
            "add --aspect crop to see its centre"
        )
    scale = (height * width / (image.width * image.height)) ** 0.5
    sides = (max(smallest_px, round(side * scale)) for side in image.size)
    return image.resize(tuple(sides), Image.Resampling.BICUBIC)
