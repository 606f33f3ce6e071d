"""PNG against a decoder in NumPy, written from the specification, third edition."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.images import Unreadable, decode, num_channels

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [
    *((0, d) for d in (1, 2, 4, 8, 16)),
    *((2, d) for d in (8, 16)),
    *((3, d) for d in (1, 2, 4, 8)),
    *((c, d) for c in (4, 6) for d in (8, 16)),
]
# Section 8.2: where the passes of an interlaced image begin, and their steps.
ADAM7 = [
    (slice(y, None, dy), slice(x, None, dx))
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
]
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind, data=b""):
    body = kind + bytes(data)
    return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def predicted(method, a, b, c):
    """Section 9.2: a byte predicted from those to its left, above, and above left."""
    return (0, a, b, (a + b) // 2, paeth(a, b, c))[method]


def filtered(raw, step, methods):
    out = np.zeros((len(raw), raw.shape[1] + 1), np.uint8)
    padded = np.zeros((len(raw) + 1, raw.shape[1] + step), int)
    padded[1:, step:] = raw
    for y, method in enumerate(methods):
        out[y, 0] = method
        for x in range(raw.shape[1]):
            guess = predicted(method, padded[y + 1, x], padded[y, x + step], padded[y, x])
            out[y, x + 1] = (int(raw[y, x]) - guess) % 256
    return out.tobytes()


def unfiltered(data, rows, width, step):
    rows_ = np.frombuffer(data, np.uint8).reshape(rows, width + 1)
    padded = np.zeros((rows + 1, width + step), int)
    for y, row in enumerate(rows_):
        for x in range(width):
            guess = predicted(row[0], padded[y + 1, x], padded[y, x + step], padded[y, x])
            padded[y + 1, x + step] = (int(row[x + 1]) + guess) % 256
    return padded[1:, step:].astype(np.uint8)


def packed(samples, depth):
    """Section 7.2: samples [h, w, c] to bytes [h, n], the leftmost in the high bits."""
    flat = samples.reshape(len(samples), -1)
    bits = flat[..., None] >> np.arange(depth - 1, -1, -1) & 1
    return np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1)


def unpacked(raw, width, channels, depth):
    bits = np.unpackbits(raw, axis=1)[:, : width * channels * depth].astype(int)
    samples = bits.reshape(len(raw), width * channels, depth)
    samples = samples @ (1 << np.arange(depth - 1, -1, -1))
    return samples.reshape(len(raw), width, channels)


def png(samples, colour, depth, *, interlaced=False, before=(), between=(), seed=0):
    rng = np.random.default_rng(seed)
    height, width, channels = samples.shape
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head += bytes([depth, colour, 0, 0, interlaced])
    step = max(1, depth * channels // 8)
    data = b""
    for where in ADAM7 if interlaced else [(slice(None), slice(None))]:
        part = samples[where]
        if part.size:
            data += filtered(packed(part, depth), step, rng.integers(0, 5, len(part)))
    content = zlib.compress(data)
    parts = [content[: len(content) // 2], *between, content[len(content) // 2 :]]
    parts = [p if p in between else chunk(b"IDAT", p) for p in parts]
    return b"".join([SIGNATURE, chunk(b"IHDR", head), *before, *parts, chunk(b"IEND")])


def reference(content):
    """Colours of a PNG on white, 0 to 1; float [h, w, 3]."""
    at, chunks = 8, []
    while at < len(content):
        n = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + n]))
        at += 12 + n
    found = dict(chunks)
    head = found[b"IHDR"]
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (0, 4))
    depth, colour, interlaced = head[8], head[9], head[12]
    channels = CHANNELS[colour]
    data = zlib.decompress(b"".join(d for k, d in chunks if k == b"IDAT"))
    samples = np.zeros((height, width, channels), int)
    for where in ADAM7 if interlaced else [(slice(None), slice(None))]:
        rows, columns, _ = samples[where].shape
        if rows and columns:
            n = (columns * channels * depth + 7) // 8
            raw = unfiltered(data[: rows * (n + 1)], rows, n, max(1, depth * channels // 8))
            data = data[rows * (n + 1) :]
            samples[where] = unpacked(raw, columns, channels, depth)
    most, clear = 2**depth - 1, found.get(b"tRNS")
    alpha = np.ones((height, width))
    if colour == 3:
        palette = np.frombuffer(found[b"PLTE"], np.uint8).reshape(-1, 3)
        if clear is not None:
            alphas = np.full(256, 255)
            alphas[: len(clear)] = list(clear)
            alpha = alphas[samples[..., 0]] / 255
        rgb = palette[samples[..., 0]] / 255
    else:
        if colour in (4, 6):
            alpha = samples[..., -1] / most
            samples = samples[..., :-1]
        elif clear is not None:
            key = np.frombuffer(clear, ">u2").astype(int) & most
            alpha = 1.0 - (samples == key).all(-1)
        rgb = np.broadcast_to(samples / most, (height, width, 3))
    return alpha[..., None] * rgb + 1 - alpha[..., None]


def cases():
    for colour, depth in KINDS:
        for transparent in (False, True) if colour in (0, 2, 3) else (False,):
            for interlaced in (False, True):
                yield colour, depth, transparent, interlaced


@pytest.mark.parametrize(("colour", "depth", "transparent", "interlaced"), list(cases()))
def test_every_kind_of_png_is_as_the_specification_says(
    colour, depth, transparent, interlaced
):
    rng = np.random.default_rng([colour, depth, transparent, interlaced])
    for height, width in ((7, 9), (1, 1), (2, 5)):
        shape = (height, width, CHANNELS[colour])
        few = [0, 255, 256, 0x1234, 0x1235, 0x1334, 2**16 - 1]
        values = rng.choice(few, shape) if depth == 16 else rng.integers(0, 2**depth, shape)
        before = []
        if colour == 3:
            before.append(
                chunk(b"PLTE", rng.integers(0, 256, 3 * 2**depth).astype(np.uint8))
            )
        if transparent and colour == 3:
            alphas = rng.integers(0, 256, rng.integers(1, 2**depth + 1)).astype(np.uint8)
            before.append(chunk(b"tRNS", alphas))
        elif transparent:  # The value of one pixel, with bits that do not count.
            key = values[rng.integers(height), rng.integers(width)].astype(">u2")
            before.append(chunk(b"tRNS", (key + (0xFF00 if depth == 8 else 0)).tobytes()))
        content = png(values, colour, depth, interlaced=interlaced, before=before)
        exact = reference(content) * 255
        seen = decode(content, (height, width, 3), "crop").astype(int)
        # Upper bytes of 16-bit colour are less than a level lower; blending rounds once.
        assert abs(seen - exact).max() <= (1.01 if depth == 16 or colour > 2 else 0.51)
        if colour in (0, 2) and depth <= 8:
            np.testing.assert_array_equal(seen, np.rint(exact))
        is_grey = (np.ptp(exact, axis=-1) == 0).all() if colour == 3 else colour in (0, 4)
        if colour != 3:
            assert num_channels(io.BytesIO(content)) == (1 if is_grey else 3)


def test_the_decoder_of_this_test_reads_what_pillow_writes():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(np.rint(reference(file.getvalue()) * 255), pixels)


def test_sixteen_bits_of_grey_keep_their_transparent_colour():
    content = png(np.array([[[0], [30000]]]), 0, 16, before=[chunk(b"tRNS", b"\0\0")])
    assert decode(content, (1, 2, 1), "crop").ravel().tolist() == [255, 117]


# Damage

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 24, 3))


def with_data(data, *, interlaced=False, depth=8, colour=2):
    head = (24).to_bytes(4, "big") + (40).to_bytes(4, "big")
    head += bytes([depth, colour, 0, 0, interlaced])
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND"))
    return SIGNATURE + b"".join(parts)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_data_that_stop_too_early_are_damage(interlaced, share):
    content = png(COLOURS, 2, 8, interlaced=interlaced)
    at = content.index(b"IDAT") - 4
    packed_ = b""
    while content[at + 4 : at + 8] == b"IDAT":
        n = int.from_bytes(content[at : at + 4], "big")
        packed_, at = packed_ + content[at + 8 : at + 8 + n], at + 12 + n
    data = zlib.decompress(packed_)
    whole = with_data(data, interlaced=interlaced)
    np.testing.assert_array_equal(decode(whole, (40, 24, 3), "crop"), COLOURS)
    part = with_data(data[: int(share * len(data))], interlaced=interlaced)
    with pytest.raises(Unreadable, match="truncated"):
        decode(part, (40, 24, 3), "crop")


@pytest.mark.parametrize("depth", [1, 8])
def test_black_pictures_are_complete(depth):
    content = png(np.zeros((40, 24, 1), int), 0, depth)
    assert not decode(content, (40, 24, 1), "crop").any()


def test_a_wrong_checksum_is_damage_in_a_chunk_that_matters():
    content = png(COLOURS, 2, 8, before=[chunk(b"tEXt", b"a\0b")])
    for kind in (b"IHDR", b"IDAT"):
        at = content.index(kind)
        n = int.from_bytes(content[at - 4 : at], "big")
        bad = bytearray(content)
        bad[at + 4 + n] ^= 1
        with pytest.raises(Unreadable, match="checksum"):
            decode(bytes(bad), (40, 24, 3), "crop")
    bad = bytearray(content)
    bad[content.index(b"tEXt") + 5] ^= 1
    np.testing.assert_array_equal(decode(bytes(bad), (40, 24, 3), "crop"), COLOURS)


BOMB = zlib.compress(bytes(2**28))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        chunk(b"tEXt", b"Comment\0" + bytes(2**22)),
        chunk(b"iCCP", b"icc\0\0" + BOMB),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"no profile")),
        chunk(b"prVt", bytes(100)),
        chunk(b"acTL", bytes(8)),
    ],
    ids=lambda c: c[4:26].decode("latin-1").strip("\0"),
)
def test_what_is_no_part_of_the_picture_is_skipped(extra):
    for content in (
        png(COLOURS, 2, 8, before=[extra]),
        png(COLOURS, 2, 8)[:-12] + extra + chunk(b"IEND"),
    ):
        np.testing.assert_array_equal(decode(content, (40, 24, 3), "crop"), COLOURS)
        assert num_channels(io.BytesIO(content)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c[:20], "truncated"),
        (lambda c: c.replace(b"IDAT", b"iDAT"), "no image data"),
        (lambda c: SIGNATURE + chunk(b"CgBI", bytes(4)) + c[8:], "Apple"),
        (lambda c: c[:16] + bytes(4) + c[20:], "checksum"),
    ],
)
def test_the_reason_is_the_true_one(change, said):
    with pytest.raises(Unreadable, match=said):
        decode(change(png(COLOURS, 2, 8)), (40, 24, 3), "crop")
