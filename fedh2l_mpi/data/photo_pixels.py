"""Decode the content of a picture's file to an array of the wanted size.

Pillow is imported where a picture is decoded, because it is an optional dependency that nothing else needs.

Shape letters: K channels, S side of a square, H height, W width.
"""

import contextlib
import io
import os
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

# Formats that Pillow may recognise in a file of any name; some others that it knows are not safe to open.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
# Largest picture. Decoding one was measured to take up to 13 bytes per pixel, so a worker needs at most some 1.6 GB.
LARGEST_PIXELS = 120_000_000
# The decoders of these formats hold several copies, and take up to 20 bytes per pixel.
LARGEST_PIXELS_OF = {"WEBP": 60_000_000, "AVIF": 60_000_000}
LARGEST_BYTES = 1 << 29
# Grey level behind transparent parts, by name.
BACKGROUNDS = {"white": 255, "grey": 128, "black": 0}
# Orientation in EXIF to the names of Pillow's methods. Source: EXIF 2.32, tag 0x0112.
TRANSPOSED = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
ORIENTATION = 0x0112


class Findings(NamedTuple):
    """Facts about a decoded picture that its user should know.

    Attributes
    ----------
    enlarged : bool
        The part that was resized was smaller than the image.
    transparent : bool
        It had transparent parts.
    several : bool
        Its file has several frames or pages; the first was decoded.
    flat : bool
        Its image is of one colour.
    """

    enlarged: bool
    transparent: bool
    several: bool
    flat: bool


# Side of a square, height and width, or None for a picture's own size [pixels].
Size = int | tuple[int, int] | None


def decode(raw: bytes, channels: int, size: Size, background: int = 255) -> tuple[NDArray[np.uint8], Findings]:
    """Decode the largest part of a picture, in its middle, that has the wanted proportions, and resize it.

    Parameters
    ----------
    raw : bytes
        Content of the picture's file.
    channels : int
        3: red, green, blue; 1: luminance.
    size : int, (int, int) or None
        S, or H and W; None: the picture is not resized.
    background : int
        Grey level behind transparent parts, 0 to 255.

    Returns
    -------
    uint8 (K, H, W), C order, and Findings

    Raises
    ------
    Exception
        Of any kind, if it cannot be decoded; `why_unreadable` says why.
    """
    if not raw:
        raise ValueError("an empty file")
    try:
        return _decode(raw, channels, size, background)
    except (MemoryError, TooLargeError):
        raise
    # Pillow refuses a picture with correct pixels if its texts are too long or its colour profile is damaged.
    except Exception:
        bare = without_metadata(raw)
        if len(bare) == len(raw):
            raise
    return _decode(bare, channels, size, background)


class TooLargeError(ValueError):
    """A picture has more pixels or bytes than are decoded."""


def _decode(raw: bytes, channels: int, size: Size, background: int) -> tuple[NDArray[np.uint8], Findings]:
    from PIL import Image

    # Pillow warns about odd metadata and large pictures, and refuses pictures twice as large. Where it only warns, the
    # pixels are correct.
    with (
        warnings.catch_warnings(action="ignore"),
        _quiet_libtiff(raw),
        Image.open(io.BytesIO(raw), formats=_formats()) as opened,
    ):
        width, height = opened.size
        _refuse_if_too_large(width * height, LARGEST_PIXELS_OF.get(str(opened.format), LARGEST_PIXELS))
        # A TIFF's tiles may be larger than the picture itself, and are decoded whole.
        tile = getattr(opened, "tag_v2", {})
        _refuse_if_too_large(int(tile.get(322, 1)) * int(tile.get(323, 1)))
        several = opened.format != "MPO" and _has_several_frames(opened)
        opened.seek(0)
        opened.load()
        picture, is_transparent = _on_background(_upright(opened), _depth(raw), background)
        picture = _eight_bits(picture)
        mode = "RGB" if channels == 3 else "L"
        picture = picture if picture.mode == mode else picture.convert(mode)
        width, height = picture.size
        tall, wide = (height, width) if size is None else (size, size) if isinstance(size, int) else size
        box_width, box_height = (
            (width, width * tall / wide)
            if width * tall <= height * wide
            else (
                height * wide / tall,
                height,
            )
        )
        left, top = (width - box_width) / 2, (height - box_height) / 2
        # Only the middle is resized, because the rest of a very wide picture could fill the memory.
        box = (left, top, left + box_width, top + box_height)
        middle = picture.resize((wide, tall), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(middle, dtype=np.uint8).reshape(tall, wide, channels)
    is_flat = bool((pixels.min(axis=(0, 1)) == pixels.max(axis=(0, 1))).all())
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return image, Findings(box_height < tall, is_transparent, several, is_flat)


@contextlib.contextmanager
def _quiet_libtiff(raw: bytes) -> Iterator[None]:
    """Discard what libtiff prints to standard error about a damaged file; the exception says it, too."""
    if raw[:2] not in (b"II", b"MM"):
        yield
        return
    kept = os.dup(2)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _formats() -> list[str]:
    from PIL import features

    return [name for name in FORMATS if name != "AVIF" or features.check("avif")]


def _refuse_if_too_large(pixels: int, most: int = LARGEST_PIXELS) -> None:
    if pixels > most:
        raise TooLargeError(f"{pixels:,} pixels; at most {most:,} are decoded")


def _has_several_frames(opened: "Image.Image") -> bool:
    try:
        return bool(getattr(opened, "is_animated", False))
    except MemoryError:
        raise
    # Only a later frame is damaged.
    except Exception:
        return True


def _upright(picture: "Image.Image") -> "Image.Image":
    """Turn a picture as its EXIF says; Pillow's own function fails for tags that it cannot write again."""
    from PIL import Image

    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
        method = TRANSPOSED.get(orientation)
    except MemoryError:
        raise
    # Damaged metadata: the pixels are used as they are.
    except Exception:
        return picture
    return picture if method is None else picture.transpose(Image.Transpose[method])


def _on_background(picture: "Image.Image", depth: int, background: int) -> tuple["Image.Image", bool]:
    """Compose a picture with transparent parts onto one colour. A picture that is invisible everywhere is unchanged.

    Source: W3C PNG 3, section 13.16 (alpha channel processing), with samples as they are, as browsers do it.
    """
    from PIL import Image

    picture = _with_alpha(picture, depth)
    if picture.mode != "RGBA":
        return picture, False
    alpha = picture.getchannel("A")
    lowest, highest = alpha.getextrema()
    # Some programs write an alpha channel and leave it empty; viewers of such files ignore it.
    if lowest == 255 or highest == 0:
        return picture, False
    canvas = Image.new("RGB", picture.size, (background,) * 3)
    canvas.paste(picture, mask=alpha)
    return canvas, True


def _with_alpha(picture: "Image.Image", depth: int) -> "Image.Image":
    """Return the picture in the mode RGBA if its file says what is transparent, and unchanged if not."""
    from PIL import Image

    if picture.mode in ("RGBa", "LA", "PA") or (picture.mode == "P" and "transparency" in picture.info):
        return picture.convert("RGBA")
    if picture.mode == "La":
        return picture.convert("LA").convert("RGBA")
    key = picture.info.get("transparency")
    if picture.mode.startswith("I") and isinstance(key, int):
        alpha = Image.fromarray(np.where(np.asarray(picture) == key, np.uint8(0), np.uint8(255)))
        return Image.merge("LA", (_eight_bits(picture), alpha)).convert("RGBA")
    if picture.mode == "L" and isinstance(key, int):
        # The key counts in the file's levels, of which a PNG may have 4 or 16; Pillow's pixels have 256.
        picture.info["transparency"] = key * 255 // (2 ** min(depth, 8) - 1)
        return picture.convert("RGBA")
    if picture.mode == "RGB" and isinstance(key, tuple):
        picture.info["transparency"] = tuple(level >> max(0, depth - 8) for level in key)
        return picture.convert("RGBA")
    if picture.mode == "1" and isinstance(key, int):
        return picture.convert("RGBA")
    return picture


def _depth(raw: bytes) -> int:
    """Return the bits per sample of a PNG; 8 for other formats. Source: W3C PNG 3, section 11.2.1 (IHDR)."""
    return raw[24] if raw.startswith(PNG) and len(raw) > 24 else 8


def _eight_bits(picture: "Image.Image") -> "Image.Image":
    """Scale 16 bits of grey to 8. Pillow's conversion would clip all but the darkest 256 values to white."""
    from PIL import Image

    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        raise ValueError("its pixels are signed or of 32 bits, so white is not known; convert it to 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))


PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"


def without_metadata(raw: bytes) -> bytes:
    """Return a PNG or JPEG without metadata, except what changes its pixels or their orientation; others unchanged."""
    if raw.startswith(PNG):
        return _needed_chunks(raw)
    return _needed_segments(raw) if raw.startswith(JPEG) else raw


def _needed_chunks(raw: bytes) -> bytes:
    """Return a PNG's critical chunks, transparency and valid EXIF. Source: W3C PNG 3, section 5.3 (chunk layout)."""
    kept, at = [raw[: len(PNG)]], len(PNG)
    while at + 12 <= len(raw):
        end = at + 12 + int.from_bytes(raw[at : at + 4], "big")
        kind = raw[at + 4 : at + 8]
        is_valid = zlib.crc32(raw[at + 4 : end - 4]).to_bytes(4, "big") == raw[end - 4 : end]
        # An upper-case first letter marks a critical chunk.
        if not kind[0] & 0x20 or kind == b"tRNS" or (kind == b"eXIf" and is_valid):
            kept.append(raw[at:end])
        at = end
    return b"".join([*kept, raw[at:]])


def _needed_segments(raw: bytes) -> bytes:
    """Return a JPEG without APP2 to APP13, APP15 and comments: EXIF is APP1, and APP14 names the colour transform.

    Source: ITU T.81, annex B.
    """
    kept, at = [raw[:2]], 2
    while raw[at : at + 1] == b"\xff" and at + 4 <= len(raw):
        marker = raw[at + 1]
        # From the start of the scan on, the rest is pixels.
        if marker == 0xDA:
            break
        end = at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
        if not (0xE2 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept.append(raw[at:end])
        at = end
    return b"".join([*kept, raw[at:]])


def why_unreadable(error: Exception) -> str:
    """Return the reason for which a picture cannot be read, in the same words in every run."""
    if type(error).__name__ == "UnidentifiedImageError":
        # Its text contains the address of an object, which differs between runs.
        return f"not a picture of {', '.join(_formats())}"
    if type(error).__name__ == "DecompressionBombError":
        return f"more than {LARGEST_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" or type(error).__name__
