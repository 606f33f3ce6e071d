"""Pixels of image files: every mode that files come in, resampling by closed form."""

import contextlib
import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from diffusion_jax.data.images import Unreadable, decode, num_channels

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 4, 3), np.uint8)  # 6 high, 4 wide.
GREYS = RNG.integers(0, 256, (6, 4, 1), np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content, shape, resize="crop"):
    return decode(content, shape, resize).astype(int)


def channels(content):
    return num_channels(io.BytesIO(content))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_colours_come_back_exactly(kind):
    content = encoded(Image.fromarray(COLOURS), kind, lossless=True)
    np.testing.assert_array_equal(pixels(content, (6, 4, 3)), COLOURS)
    assert channels(content) == 3


def test_jpeg_comes_back_nearly():
    smooth = np.mgrid[0:64:4, 0:64:4].sum(0).astype(np.uint8)
    content = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    assert channels(content) == 1
    assert abs(pixels(content, (16, 16, 1))[..., 0] - smooth).max() <= 4


def test_grey_is_one_channel_or_three_equal_ones():
    content = encoded(Image.fromarray(GREYS[..., 0]))
    assert channels(content) == 1
    np.testing.assert_array_equal(pixels(content, (6, 4, 1)), GREYS)
    np.testing.assert_array_equal(pixels(content, (6, 4, 3)), np.repeat(GREYS, 3, -1))


def test_colour_becomes_grey_by_the_luma_of_television():
    content = encoded(Image.fromarray(COLOURS))
    exact = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert abs(pixels(content, (6, 4, 1))[..., 0] - exact).max() <= 0.51


def test_a_palette_gives_the_colours_it_stands_for():
    colours = np.array([[255, 0, 0], [0, 200, 10], [7, 8, 9]], np.uint8)
    where = RNG.integers(0, 3, (6, 4)).astype(np.uint8)
    image = Image.fromarray(where, "P")
    image.putpalette(colours.ravel().tolist())
    content = encoded(image)
    assert channels(content) == 3
    np.testing.assert_array_equal(pixels(content, (6, 4, 3)), colours[where])
    image.putpalette(np.repeat(colours[:, :1], 3, 1).ravel().tolist())
    assert channels(encoded(image)) == 1


def test_one_bit_is_black_and_white():
    where = RNG.integers(0, 2, (6, 4)).astype(bool)
    content = encoded(Image.fromarray(where))
    assert Image.open(io.BytesIO(content)).mode == "1" and channels(content) == 1
    np.testing.assert_array_equal(pixels(content, (6, 4, 1))[..., 0], where * 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_lies_on_white(kind):
    alpha = np.array([0, 51, 255], np.uint8)
    colour = np.array([100, 0, 50], np.uint8)
    image = np.empty((1, 3, 4), np.uint8)
    image[..., :3], image[..., 3] = colour, alpha
    content = encoded(Image.fromarray(image), kind, lossless=True, exact=True)
    opacity = alpha[:, None] / 255
    exact = opacity * colour + (1 - opacity) * 255
    assert abs(pixels(content, (1, 3, 3))[0] - exact).max() <= 1


def test_grey_with_alpha_and_palettes_with_a_transparent_colour_lie_on_white():
    image = Image.merge("LA", [Image.new("L", (2, 2), 40), Image.new("L", (2, 2), 0)])
    content = encoded(image)
    assert channels(content) == 1 and (pixels(content, (2, 2, 1)) == 255).all()
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    content = encoded(image, transparency=0)
    assert pixels(content, (1, 2, 3)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bits_become_eight_by_rounding():
    values = np.array([[0, 128, 129, 257 * 77, 257 * 77 + 128, 257 * 77 + 129, 65535]])
    content = encoded(Image.fromarray(values.astype(np.uint16)))
    assert channels(content) == 1
    assert pixels(content, (1, 7, 1)).ravel().tolist() == [0, 0, 1, 77, 77, 78, 255]


def sixteen_bit_png(values):
    """A PNG of 16-bit colour, which Pillow cannot write; values [H, W, 3]."""
    height, width, _ = values.shape

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bit_colour_is_within_one_level():
    values = RNG.integers(0, 65536, (5, 7, 3))
    content = sixteen_bit_png(values)
    assert channels(content) == 3
    assert abs(pixels(content, (5, 7, 3)) - values / 257).max() < 1


def test_cmyk_becomes_red_green_and_blue():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # No cyan: red.
    content = encoded(image, "JPEG", quality=100)
    assert channels(content) == 3
    assert abs(pixels(content, (16, 16, 3)) - [255, 0, 0]).max() <= 3


# The eight values of EXIF's orientation: where the standard has the stored first row and
# first column when the image is looked at.
SEEN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", SEEN)
def test_exif_rotations_are_done(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(COLOURS), "PNG", exif=exif)
    seen = SEEN[orientation](COLOURS)
    np.testing.assert_array_equal(pixels(content, seen.shape), seen)


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), c) for c in ((9, 99, 199), (0, 0, 0))]
    for kind in ("WEBP", "PNG"):
        content = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], lossless=True
        )
        assert (pixels(content, (4, 4, 3)) == [9, 99, 199]).all()


# Resampling. A linear ramp stays one: pixel i of n covers the source from a + i s to
# a + (i + 1) s, whose middle has the value of the ramp there.


def middles(start, length, count):
    return start + (np.arange(count) + 0.5) * length / count - 0.5


@pytest.mark.parametrize(
    ("size", "target", "resize", "box"),
    [
        ((120, 80), (20, 30), "squash", (0, 0, 120, 80)),
        ((120, 80), (20, 20), "squash", (0, 0, 120, 80)),
        ((120, 80), (20, 20), "crop", (20, 0, 80, 80)),  # left, top, width, height
        ((80, 120), (20, 20), "crop", (0, 20, 80, 80)),
        ((80, 120), (30, 10), "crop", (20, 0, 40, 120)),
        ((40, 30), (60, 80), "crop", (0, 0, 40, 30)),  # Larger than the file.
        ((41, 30), (10, 10), "crop", (5.5, 0, 30, 30)),
    ],
)
def test_a_ramp_stays_a_ramp_of_the_part_that_is_shown(size, target, resize, box):
    width, height = size
    ramp = np.empty((height, width, 3), np.uint8)
    ramp[..., 0] = np.arange(width)[None]
    ramp[..., 1] = np.arange(height)[:, None]
    ramp[..., 2] = 200
    seen = pixels(encoded(Image.fromarray(ramp)), (*target, 3), resize)
    left, top, wide, high = box
    inner = slice(2, -2)  # At the rim the filter is cut off.
    x = np.broadcast_to(middles(left, wide, target[1]), target)[inner, inner]
    y = np.broadcast_to(middles(top, high, target[0])[:, None], target)[inner, inner]
    assert abs(seen[inner, inner, 0] - x).max() <= 0.75
    assert abs(seen[inner, inner, 1] - y).max() <= 0.75
    assert (seen[..., 2] == 200).all()


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_shrinking_averages_what_is_finer_than_a_pixel(resize):
    board = (np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8)
    seen = pixels(encoded(Image.fromarray(board)), (12, 12, 1), resize)
    assert abs(seen - 127.5).max() <= 2  # Without antialiasing: 0 or 255.


def test_an_image_of_the_right_size_is_not_resampled():
    noise = RNG.integers(0, 256, (33, 17, 3), np.uint8)
    content = encoded(Image.fromarray(noise))
    for resize in ("crop", "squash"):
        np.testing.assert_array_equal(pixels(content, (33, 17, 3), resize), noise)


def test_an_edge_is_resampled_by_the_kernel_of_lanczos():
    """Lanczos' sinc(x) sinc(x / 3), stretched to the new pixels and normalised."""
    width, factor = 48, 4
    edge = np.where(np.arange(width) < 22, 60, 180).astype(np.uint8)
    content = encoded(Image.fromarray(np.broadcast_to(edge, (12, width)).copy()))
    seen = pixels(content, (3, 12, 1), "squash")[1, :, 0]
    x = (np.arange(width) + 0.5)[None] / factor - (np.arange(12) + 0.5)[:, None]
    weights = np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    exact = (weights * edge).sum(1) / weights.sum(1)
    assert abs(seen - exact).max() <= 0.75
    assert exact.min() < 59 and exact.max() > 181


def test_photographs_are_no_bombs():
    """A header of 24 megapixels, as cameras write, is accepted."""
    assert channels(with_size(GOOD, 6000, 4000)) == 3


def test_damage_of_any_kind_is_said_in_one_way():
    at = GOOD.index(b"IDAT") + 30
    with pytest.raises(Unreadable):
        decode(GOOD[:at] + bytes([GOOD[at] ^ 255]) + GOOD[at + 1 :], (8, 8, 3), "crop")
    for i in range(8, 60):  # No other error of Pillow comes out.
        bad = GOOD[:i] + bytes([GOOD[i] ^ 255]) + GOOD[i + 1 :]
        with contextlib.suppress(Unreadable):
            decode(bad, (8, 8, 3), "crop")


GOOD = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)))


def with_size(content, width, height):
    """A PNG whose header, checksum included, claims another size."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
    check = zlib.crc32(b"IHDR" + head).to_bytes(4, "big")
    return content[:16] + head + check + content[33:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a PNG, JPEG, WEBP"),
        (with_size(GOOD, 30_000, 30_000), "bomb"),
        (with_size(GOOD, 10_000, 10_000), "bomb"),
    ],
)
def test_a_header_that_cannot_be_used_is_said(content, said):
    for use in (channels, lambda c: decode(c, (8, 8, 3), "crop")):
        with pytest.raises(Unreadable, match=said):
            use(content)


@pytest.mark.parametrize("cut", [40, len(GOOD) // 2, len(GOOD) - 40])
def test_a_truncated_file_is_not_filled_up(cut):
    with pytest.raises(Unreadable):
        decode(GOOD[:cut], (8, 8, 3), "crop")
    jpeg = encoded(Image.fromarray(COLOURS).resize((64, 64)), "JPEG")
    with pytest.raises(Unreadable):
        decode(jpeg[: len(jpeg) * 3 // 4], (8, 8, 3), "crop")


# A JPEG ends with the marker of its end, wherever its data stop.


def cut_with_an_end(content, share):
    """A JPEG of one scan whose compressed data are cut short, with its end after them."""
    scan = content.rindex(b"\xff\xda")
    start = scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big")
    end = start + int((len(content) - 2 - start) * share)
    return content[:end].rstrip(b"\xff") + b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"subsampling": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_data_that_stop_before_the_end_are_damage(mode, options):
    noise = RNG.integers(0, 256, (70, 90, 4), np.uint8)
    image = Image.fromarray(noise, "CMYK").convert(mode)
    content = encoded(image, "JPEG", **options)
    shape = (70, 90, 3)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(Unreadable, match="truncated"):
            decode(cut_with_an_end(content, share), shape, "crop")
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    np.testing.assert_array_equal(decode(content, shape, "crop"), whole)
    np.testing.assert_array_equal(decode(content + b"more", shape, "crop"), whole)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (64, 64), (300, 200)])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_whole_jpegs_keep_all_their_bits(size, flat, options):
    noise = np.full((*size, 3), 77, np.uint8) if flat else RNG.integers(0, 256, (*size, 3))
    content = encoded(Image.fromarray(noise.astype(np.uint8)), "JPEG", **options)
    whole = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(decode(content, (*size, 3), "crop"), whole)


def test_twelve_bit_jpegs_are_called_so():
    content = bytearray(encoded(Image.fromarray(COLOURS), "JPEG"))
    content[content.index(b"\xff\xc0") + 4] = 12
    for use in (channels, lambda c: decode(c, (6, 4, 3), "crop")):
        with pytest.raises(Unreadable, match="12-bit"):
            use(bytes(content))


# Other kinds of files


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ],
)
def test_what_pillow_reads_is_taken(kind, options):
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow does not read it")
    two = np.array([[[255, 0, 0], [0, 0, 255]]] * 3, np.uint8)
    content = encoded(Image.fromarray(two), kind, **options)
    assert channels(content) == 3
    np.testing.assert_array_equal(pixels(content, (3, 2, 3)), two)
    grey = encoded(Image.fromarray(GREYS[..., 0]), kind, **options)
    assert channels(grey) == 1
    np.testing.assert_array_equal(pixels(grey, (6, 4, 1)), GREYS)
    with pytest.raises(Unreadable):
        decode(content[: len(content) * 2 // 3], (3, 2, 3), "crop")


@pytest.mark.skipif("avif" not in features.modules, reason="this Pillow has no AVIF")
def test_avif_comes_back_nearly():
    smooth = np.zeros((32, 32, 3), np.uint8)
    smooth[..., 0], smooth[..., 1] = np.mgrid[0:256:8, 0:256:8]
    content = encoded(Image.fromarray(smooth), "AVIF", quality=90)
    assert channels(content) == 3
    assert abs(pixels(content, (32, 32, 3)) - smooth).mean() < 3


def test_the_first_frame_of_a_gif_counts_and_its_transparency_is_white():
    frames = [Image.new("RGB", (4, 4), c) for c in ((9, 99, 199), (0, 0, 0))]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(content, (4, 4, 3)) == [9, 99, 199]).all()
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    content = encoded(image, "GIF", transparency=0)
    assert pixels(content, (1, 2, 3)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_tiff_of_sixteen_bits_is_as_a_png_of_them_and_white_may_be_zero():
    values = np.array([[0, 128, 129, 257 * 77 + 129, 65535]], np.uint16)
    exact = np.rint(values / 257).astype(int).ravel()
    image = Image.fromarray(values)
    content = encoded(image, "TIFF")
    assert pixels(content, (1, 5, 1)).ravel().tolist() == exact.tolist()
    content = encoded(image, "TIFF", tiffinfo={262: 0})
    assert pixels(content, (1, 5, 1)).ravel().tolist() == (255 - exact).tolist()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_no_known_range_are_no_picture(kind):
    content = encoded(Image.fromarray(np.zeros((4, 4), kind)), "TIFF")
    with pytest.raises(Unreadable, match="32 bits, whose range is not known"):
        decode(content, (4, 4, 1), "crop")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "it is an HDF5 file"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(99), "it is a HEIC image"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"%PDF-1.7", "it is a PDF"),
        (b"RIFF\x04\0\0\0WEBPVP8 \0\0\0\0", "no WebP header"),
        (encoded(Image.new("RGB", (9, 9)), "WEBP")[:40], "truncated"),
    ],
)
def test_what_it_is_instead_is_said(content, said):
    with pytest.raises(Unreadable, match=said):
        decode(content, (8, 8, 3), "crop")


def webp_header(width, height):
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + size


def test_the_canvas_of_a_webp_is_not_made_before_it_is_measured():
    for use in (channels, lambda c: decode(c, (8, 8, 3), "crop")):
        with pytest.raises(Unreadable, match="bomb"):
            use(webp_header(16_000, 16_000))


# Colour profiles. Those of a matrix are a few numbers; swapping two of their entries says
# that what is stored as red is green.


def srgb(swapped=False):
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
        content = bytearray(content)
        content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(content)


SWAPPED = srgb(swapped=True)
FORMATS = [("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0}), ("TIFF", {})]
FORMATS.append(("WEBP", {"lossless": True}))


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_colours_are_those_of_the_profile(kind, options):
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    content = encoded(image, kind, icc_profile=SWAPPED, **options)
    assert abs(pixels(content, (16, 16, 3)) - [0, 255, 0]).max() <= 2
    assert abs(pixels(content, (16, 16, 1)) - 0.587 * 255).max() <= 2
    # At another size, and where a picture is converted in many strips.
    assert abs(pixels(content, (8, 8, 3)) - [0, 255, 0]).max() <= 2


def test_a_profile_holds_for_palettes_and_beside_transparency():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 51))
    content = encoded(image, icc_profile=SWAPPED)
    assert abs(pixels(content, (4, 4, 3)) - [204, 255, 204]).max() <= 2
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    content = encoded(image, icc_profile=SWAPPED)
    assert abs(pixels(content, (4, 4, 3)) - [0, 255, 0]).max() <= 2


def test_the_profile_of_another_gamma_is_undone():
    """A grey ramp with a profile of gamma 1 gets the curve of sRGB, by IEC 61966-2-1."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    curve = int.from_bytes(profile[profile.index(b"rTRC") + 4 :][:4], "big")
    profile[curve : curve + 12] = b"curv" + bytes(8)  # A curve of no entries is linear.
    ramp = np.arange(256, dtype=np.uint8)[None]
    content = encoded(
        Image.fromarray(ramp[..., None].repeat(3, 2)), icc_profile=bytes(profile)
    )
    linear = ramp / 255
    exact = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    seen = pixels(content, (1, 256, 3))
    assert abs(seen[..., 0] - 255 * exact).max() <= 1.5


def test_the_profile_of_a_grey_picture_is_undone():
    profile = bytearray(srgb())
    profile[16:20] = b"GRAY"
    curve = int.from_bytes(profile[profile.index(b"rTRC") + 4 :][:4], "big")
    at = profile.index(b"rTRC")
    profile[at : at + 4] = b"kTRC"
    profile[curve : curve + 12] = b"curv" + bytes(8)
    ramp = np.arange(256)[None]
    linear = ramp / 255
    exact = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    for kind, scale in ((np.uint8, 1), (np.uint16, 257)):
        image = Image.fromarray((ramp * scale).astype(kind))
        content = encoded(image, icc_profile=bytes(profile))
        assert abs(pixels(content, (1, 256, 1))[..., 0] - 255 * exact).max() <= 1.5


def white_inks():
    """A profile of CMYK in which all inks are white; ICC.1, 10.11 (lut8Type)."""
    identity = b"".join(
        v.to_bytes(4, "big") for v in (65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    )
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    table += ramp * 4 + bytes([255, 128, 128]) * 16 + ramp * 3
    white = b"XYZ " + bytes(4) + bytes.fromhex("0000f6d6000100000000d32d")
    tags, at, data = b"", 128 + 4 + 12 * 2, b""
    for name, body in ((b"A2B0", table), (b"wtpt", white)):
        tags += name + (at + len(data)).to_bytes(4, "big") + len(body).to_bytes(4, "big")
        data += body + bytes(-len(body) % 4)
    head = bytearray(128)
    head[0:4] = (at + len(data)).to_bytes(4, "big")
    head[8:12], head[12:24] = b"\x02\x40\0\0", b"prtrCMYKLab "
    head[36:40], head[68:80] = b"acsp", bytes.fromhex("0000f6d6000100000000d32d")
    return bytes(head) + (2).to_bytes(4, "big") + tags + data


def test_the_profile_of_inks_is_what_they_look_like():
    image = Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    content = encoded(image, "JPEG", quality=100, icc_profile=white_inks())
    assert pixels(content, (16, 16, 3)).min() >= 254
    assert pixels(encoded(image, "JPEG", quality=100), (16, 16, 3)).max() <= 1


def test_srgb_itself_and_broken_profiles_change_nothing():
    broken = bytearray(srgb())
    broken[130:400] = bytes(270)
    grey = bytearray(srgb())
    grey[16:20] = b"GRAY"
    for profile in (srgb(), b"no profile", bytes(broken), bytes(grey), srgb()[:300]):
        content = encoded(Image.fromarray(COLOURS), icc_profile=profile)
        np.testing.assert_array_equal(pixels(content, (6, 4, 3)), COLOURS)
    # A profile that is not for grey.
    content = encoded(Image.fromarray(GREYS[..., 0]), icc_profile=SWAPPED)
    np.testing.assert_array_equal(pixels(content, (6, 4, 1)), GREYS)


# Memory

PEAK = """
import io, resource, sys
import numpy as np
from PIL import Image
from diffusion_jax.data.images import decode
Image.MAX_IMAGE_PIXELS = None
content = open(sys.argv[1], "rb").read()
decode(content[:0] + open(sys.argv[2], "rb").read(), (8, 8, 1), "crop")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = decode(content, (8, 8, 3), "crop")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, seen.max(), seen.min())
"""


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "L"])
def test_a_large_picture_takes_a_few_times_its_own_size(mode, tmp_path):
    size = 9480
    image = Image.new(mode, (size, size), (9, 9, 9, 255) if mode == "RGBA" else 9)
    image.save(tmp_path / "large.png", compress_level=1)
    Image.new("I;16", (8, 8)).save(tmp_path / "small.png")
    result = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "large.png", tmp_path / "small.png"],
        capture_output=True,
        text=True,
        check=True,
    )
    kib, high, low = map(int, result.stdout.split())
    per_pixel = {"I;16": 2, "RGBA": 4, "L": 1}[mode] + 4  # As read, and converted.
    assert kib * 1024 < 1.4 * size * size * per_pixel
    assert high - low == 0
