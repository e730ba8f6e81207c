"""Pixels of a picture in every format: turned as it says, on the stated background, within bounds, whatever it says."""

import io
import struct
import zlib

import numpy as np
import pytest
from helpers.photographs import SIDE, arrays, expected, picture
from PIL import Image, PngImagePlugin

from fedh2l_mpi.data import pack_writer, photo_pixels

DRAWN = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)


def test_pictures_of_every_kind_become_rgb(tmp_path):
    folder = tmp_path / "root" / "some" / "thing"
    folder.mkdir(parents=True)
    upright = picture(0, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    upright.save(folder / "a_turned.jpg", exif=exif, quality=95)
    upright.convert("L").save(folder / "b_grey.PNG")
    upright.convert("P").save(folder / "c_palette.png")
    upright.convert("RGBA").save(folder / "d_alpha.webp", lossless=True)
    upright.convert("CMYK").save(folder / "e_cmyk.JPEG")
    upright.save(folder / "f.bmp")
    deep = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    Image.fromarray(deep).save(folder / "g_16_bits.png")
    picture(1, 300, 1).save(folder / "h_a_line.png")
    for number, (suffix, name) in enumerate((("tif", "TIFF"), ("Tiff", "TIFF"), ("ppm", "PPM"), ("dib", "BMP"))):
        upright.save(folder / f"i{number}.{suffix}", name)
    for number, suffix in enumerate(("jfif", "jpe")):
        upright.save(folder / f"j{number}.{suffix}", "JPEG", quality=95)
    result = pack_writer.pack(tmp_path / "root", tmp_path / "out.h5", side=SIDE, workers=1)
    assert (result.skipped, result.enlarged, result.transparent) == ([], 1, 0)
    assert "pictures: 1 .bmp, 1 .dib, 1 .jfif, 1 .jpe, " in result.report()
    images = arrays(tmp_path / "out.h5")["image"].astype(float)
    assert np.array_equal(images[0], expected(folder / "a_turned.jpg"))
    turned = np.rot90(images[5], -1, (1, 2))
    assert np.abs(turned - images[0]).mean() < 5  # but for JPEG's losses
    assert np.abs(images[3] - images[5]).mean() < 5
    # Sixteen bits of grey are scaled, not clipped: a ramp stays one.
    assert 100 < images[6].mean() < 155
    assert images[6].min() < 50
    for image in images[8:12]:
        assert np.array_equal(image, images[5])
    assert np.abs(images[12:] - images[5]).mean() < 5


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def with_palette(name: str, **options: object) -> tuple[bytes, np.ndarray]:
    """A picture of eight colours, one of them transparent, and its red, green, blue and alpha."""
    image = Image.fromarray(DRAWN[..., :3]).quantize(8)
    numbers = np.asarray(image)
    colours = np.array(image.getpalette()).reshape(-1, 3)[numbers]
    alpha = np.where(numbers == 3, 0, 255)
    if name == "TIFF":
        image = Image.merge(
            "RGBA", (*Image.fromarray(colours.astype(np.uint8)).split(), Image.fromarray(DRAWN[..., 3]))
        )
        image, alpha = image.convert("PA"), DRAWN[..., 3]
        colours = np.asarray(image.convert("RGBA"))[..., :3]
    return saved(image, name, **options), np.dstack((colours, alpha))


@pytest.mark.parametrize("background", [255, 0])
def test_transparent_parts_have_the_colour_of_the_background(background):
    grey = np.asarray(Image.fromarray(DRAWN[..., :3]).convert("L"))
    grey_and_alpha = np.dstack((grey, grey, grey, DRAWN[..., 3]))
    image = Image.fromarray(DRAWN)
    cases = {
        "RGBA": (saved(image, "PNG"), DRAWN),
        "WebP": (saved(image, "WEBP", lossless=True, exact=True), DRAWN),
        "TIFF": (saved(image, "TIFF"), DRAWN),
        "LA": (saved(Image.fromarray(grey_and_alpha).convert("LA"), "PNG"), grey_and_alpha),
        "LA in TIFF": (saved(Image.fromarray(grey_and_alpha).convert("LA"), "TIFF"), grey_and_alpha),
        "P": with_palette("PNG", transparency=3),
        "P with a level for each colour": with_palette("PNG", transparency=bytes([255, 255, 255, 0])),
        "GIF": with_palette("GIF", transparency=3),
        "PA": with_palette("TIFF"),
    }
    for name, (raw, rgba) in cases.items():
        alpha = rgba[..., 3:].astype(float)
        composed = np.rint((rgba[..., :3] * alpha + background * (255 - alpha)) / 255)
        pixels, findings = photo_pixels.decode(raw, 3, 8, background)
        assert np.abs(pixels.transpose(1, 2, 0) - composed).max() <= 1, name
        assert findings.transparent, name
        luminance, _ = photo_pixels.decode(raw, 1, 8, background)
        # ITU-R 601-2, as Pillow has it.
        assert np.abs(luminance[0] - composed @ (0.299, 0.587, 0.114)).max() <= 2, name


def test_an_alpha_channel_that_hides_nothing_or_everything_is_no_alpha():
    plain, _ = photo_pixels.decode(saved(Image.fromarray(DRAWN[..., :3]), "PNG"), 3, 8)
    for level in (255, 0):
        rgba = np.dstack((DRAWN[..., :3], np.full((8, 8), level, np.uint8)))
        pixels, findings = photo_pixels.decode(saved(Image.fromarray(rgba), "PNG"), 3, 8)
        assert np.array_equal(pixels, plain)
        assert not findings.transparent


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG by hand, because Pillow writes no keys of transparency for every depth."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join((photo_pixels.PNG, header, *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_level_counts_in_the_bits_of_the_file(depth, channels):
    top = 2**depth - 1
    # Two rows of black, white and white, black; a row fills whole bytes.
    bits = [f"{a:0{depth}b}{b:0{depth}b}".ljust(-(-2 * depth // 8) * 8, "0") for a, b in ((0, top), (top, 0))]
    rows = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big") for row in bits)
    for key, levels in ((0, (100, 255)), (top, (0, 100))):
        raw = png(2, 2, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", key)))
        pixels, findings = photo_pixels.decode(raw, channels, 2, background=100)
        assert pixels.tolist() == [[list(levels), list(levels[::-1])]] * channels
        assert findings.transparent


def test_a_transparent_colour_counts_in_the_bits_of_the_file():
    for depth, kind in ((8, ">u1"), (16, ">u2")):
        top = 2**depth - 1
        row = b"\0" + np.array([0, top, 0, top, 0, 0], dtype=kind).tobytes()
        raw = png(2, 2, depth, 2, row + row, chunk(b"tRNS", struct.pack(">HHH", 0, top, 0)))
        pixels, _ = photo_pixels.decode(raw, 3, 2)
        assert pixels[:, 0].T.tolist() == [[255, 255, 255], [255, 0, 0]]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_is_turned_as_it_says(name):
    # Arrays turn as EXIF describes the place of the first row and column.
    turns = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
        lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        lambda a: np.rot90(a),
    ]
    drawing = picture(3, SIDE, SIDE)
    plain = photo_pixels.decode(saved(drawing, name), 3, SIDE)[0].transpose(1, 2, 0).astype(float)
    for orientation, turn in enumerate(turns, 1):
        exif = Image.Exif()
        exif[photo_pixels.ORIENTATION] = orientation
        pixels, _ = photo_pixels.decode(saved(drawing, name, exif=exif), 3, SIDE)
        assert np.abs(pixels.transpose(1, 2, 0) - turn(plain)).mean() < 2, orientation


def test_damaged_metadata_do_not_cost_the_picture():
    image = Image.fromarray(DRAWN[..., :3])
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "y" * 3_000_000, zip=True)
    plain = saved(image, "PNG")
    first = plain.index(b"IDAT") - 4
    for spoilt in (
        saved(image, "PNG", pnginfo=text),
        plain[:first] + chunk(b"iCCP", b"profile\0\7damaged") + plain[first:],
        plain[:first] + chunk(b"gAMA", b"") + plain[first:],
        plain[:first] + chunk(b"eXIf", b"MM")[:-1] + b"?" + plain[first:],
    ):
        pixels, _ = photo_pixels.decode(spoilt, 3, 8)
        assert np.array_equal(pixels.transpose(1, 2, 0), DRAWN[..., :3])
    jpeg = saved(image, "JPEG")
    # A tag of an odd type next to orientation 6: Pillow reads the tags, but could not write them again.
    entries = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x100, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    upright = photo_pixels.decode(jpeg, 3, 8)[0]
    assert np.array_equal(photo_pixels.decode(turned, 3, 8)[0], np.rot90(upright, -1, (1, 2)))
    app2 = b"\xff\xe2" + struct.pack(">H", 12) + b"0123456789"
    assert photo_pixels.without_metadata(jpeg[:2] + app2 + jpeg[2:]) == jpeg


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded():
    wide = png(13_000, 13_000, 8, 2, b"")
    # One pixel, in one tile of 20,000 x 20,000.
    sizes = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 8, 325: 1}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sizes.items())
    tiled = b"II*\0" + struct.pack("<IH", 8, len(sizes)) + tags + bytes(4)
    for raw, reason in (
        (wide, "169,000,000 pixels; at most 120,000,000 are decoded"),
        (png(30_000, 30_000, 8, 2, b""), "more than 120,000,000 pixels"),
        (tiled, "400,000,000 pixels; at most 120,000,000 are decoded"),
    ):
        with pytest.raises(Exception, match="pixels") as error:
            photo_pixels.decode(raw, 3, 8)
        assert photo_pixels.why_unreadable(error.value) == reason


def test_a_damaged_tiff_prints_nothing(capfd):
    whole = saved(Image.fromarray(DRAWN[..., :3]), "TIFF", compression="tiff_deflate")
    with pytest.raises(OSError, match="decoder error"):
        photo_pixels.decode(whole[:8] + bytes(190) + whole[198:], 3, 8)
    assert capfd.readouterr() == ("", "")


def test_pixels_without_a_known_white_are_refused():
    for kind in (np.float32, np.int32):
        with pytest.raises(ValueError, match="white is not known; convert it"):
            photo_pixels.decode(saved(Image.fromarray(np.ones((8, 8), kind)), "TIFF"), 3, 8)


def test_what_a_user_should_know_is_found():
    frames = [picture(number, 9, 9) for number in range(2)]
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        raw = saved(frames[0], name, save_all=True, append_images=frames[1:])
        assert photo_pixels.decode(raw, 3, 8)[1] == (False, False, True, False), name
        assert photo_pixels.decode(saved(frames[0], name), 3, 9)[1] == (False, False, False, False), name
    red = saved(Image.new("RGB", (4, 9), "red"), "PNG")
    assert photo_pixels.decode(red, 3, 8)[1] == (True, False, False, True)
