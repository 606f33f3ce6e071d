"""Decoding of image files to uint8 pixels of the shape that is wanted."""

import contextlib
import dataclasses
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import IO, ClassVar

import numpy as np
from PIL import Image

from diffusion_jax.data import colours, formats, png
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.low_res import reduced
from diffusion_jax.data.unreadable import Unreadable, reason

_MAX_PIXELS = 90_000_000  # More in one picture is taken for a decompression bomb.
_STRIP = 2**22  # Pixels that are converted at a time.
_LARGE = 2**24  # Pictures with more pixels than this are decoded one at a time.
_one_large = threading.Lock()
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # Tag of EXIF.
_BITS, _PHOTOMETRIC = 258, 262  # Tags of TIFF.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # A marker after compressed data.
# Pillow's warnings of large or odd pictures. (A filter within a context is not for
# threads.)
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True)
class ImageFormat(FileFormat):
    """Image files, which become uint8 [H, W, C].

    Attributes:
      resize, reduced_from: see `fit`.
    """

    resize: str = "crop"
    reduced_from: tuple[int, ...] = ()

    name: ClassVar[str] = "images"
    one: ClassVar[str] = "image"
    suffixes: ClassVar[tuple[str, ...]] = formats.SUFFIXES
    dtype: ClassVar[type] = np.uint8
    channels: ClassVar[Mapping[int, str]] = {1: "grey", 3: "colour"}
    widened: ClassVar[str] = "coloured"

    def num_channels(self, file: IO[bytes], size: int | None = None) -> int:
        return num_channels(file, size)

    def decode(self, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        height, width, channels = shape
        wanted = (height, width, channels)
        return decode(content, wanted, self.resize, self.reduced_from)


def num_channels(file: IO[bytes], size: int | None = None) -> int:
    """Return 1 if an image is grey, 3 if it is in colour; only the header is read.

    Args:
      file: that can be sought in.
      size: of it, if that is known.

    Raises:
      Unreadable: if the header is not that of an image of a sane size.
    """
    head = file.read(formats.HEAD)
    kind = _kind(head)
    file.seek(0)
    if kind == "PNG":
        header = png.read_header(file)
        _check_size(header.width, header.height)
        return 1 if png.is_grey(file, header) else 3
    if kind == "WEBP":
        _check_webp(head, size)
        return 3
    return 1 if _is_grey(_open(file, kind)) else 3


def size_of(content: bytes) -> tuple[int, int]:
    """Return (height, width) in the header of an image; EXIF may ask to turn it.

    Raises:
      Unreadable: as `num_channels`.
    """
    file = io.BytesIO(content)
    kind = _kind(content[: formats.HEAD])
    if kind == "PNG":
        header = png.read_header(file)
        return header.height, header.width
    image = _open(file, kind)
    return image.height, image.width


def open_image(file: IO[bytes], size: int | None = None) -> Image.Image:
    """Return an image of which only the header is read yet, at its first frame.

    Args:
      file: that can be sought in; the image reads on from it.
      size: of it, if that is known.

    Raises:
      Unreadable: as `num_channels`.
    """
    head = file.read(formats.HEAD)
    kind = _kind(head)
    file.seek(0)
    if kind == "WEBP":
        _check_webp(head, size)
    return _open(file, kind)


def decode(
    content: bytes,
    shape: tuple[int, int, int],
    resize: str,
    reduced_from: tuple[int, ...] = (),
) -> np.ndarray:
    """Return the pixels of an image file; uint8 [H, W, C].

    A rotation that EXIF asks for is done; an embedded colour profile is converted to sRGB;
    what is transparent lies on white; 16 bits of grey become 8 by rounding v / 257, those
    of colour by their upper byte (Pillow has no 16-bit colour), which is less than one
    level lower; colour becomes grey as 0.299 R + 0.587 G + 0.114 B. The first frame of an
    animation counts.

    Args:
      content: of a file of one of `formats.KINDS`.
      shape: (H, W, C) with C 1 or 3.
      resize, reduced_from: see `fit`.

    Raises:
      Unreadable: if it is none of these, truncated, or larger than 90 million pixels.
    """
    return _read(content, shape[2], lambda image: fit(image, shape, resize, reduced_from))


def decode_whole(content: bytes, channels: int) -> np.ndarray:
    """Return the pixels of an image file in its own size; uint8 [H, W, C].

    Args:
      content, channels: as in `decode`, which gives what `fit` makes of this.

    Raises:
      Unreadable: as `decode` does.
    """
    return _read(
        content,
        channels,
        lambda image: fit(image, (image.height, image.width, channels), "squash"),
    )


def _read(
    content: bytes, channels: int, use: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    """Return what `use` makes of a decoded image; large ones are decoded one at a time."""
    head = content[: formats.HEAD]
    kind = _kind(head)
    whole = None
    if kind == "PNG":
        whole = png.read(content)
        content = whole.content
    elif kind == "JPEG":
        content = _without_end(content)
    elif kind == "WEBP":
        _check_webp(head, len(content))
    image = _open(io.BytesIO(content), kind)
    large = image.width * image.height > _LARGE
    with _one_large if large else contextlib.nullcontext():
        try:
            return use(_decoded(image, whole, channels))
        except Unreadable:
            raise
        except Exception as error:  # Damaged bytes make Pillow raise nearly any kind.
            raise Unreadable(reason(error)) from error


def _decoded(image: Image.Image, whole: png.Png | None, channels: int) -> Image.Image:
    low_bytes = _load_png(image, whole) if whole else None
    image.load()
    _check_mode(image)
    rotation = None
    with contextlib.suppress(Exception):  # Damaged EXIF asks for nothing.
        rotation = _ROTATIONS.get(image.getexif().get(_ORIENTATION, 1))
    key = whole.transparent if whole else ()
    image = _plain(image, "L" if channels == 1 else "RGB", key, low_bytes)
    return image if rotation is None else image.transpose(rotation)


def fit(
    image: Image.Image,
    shape: tuple[int, int, int],
    resize: str,
    reduced_from: tuple[int, ...] = (),
) -> np.ndarray:
    """Return an image of any mode and size as uint8 [H, W, C].

    Args:
      image: with any mode.
      shape: (H, W, C). An image that has it already is not resampled.
      resize: "crop" keeps the aspect and cuts the middle out; "squash" keeps all of the
        image; "pad" keeps its aspect too, never enlarges it, and has black around it. They
        use one Lanczos filter that is as wide as the pixels that it averages.
      reduced_from: size, (side,) or (H', W'), that the image is made to fit first, and then
        reduced from, as for the low resolution of a larger image; () is without.
    """
    height, width, channels = shape
    image = _plain(image, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        if reduced_from:
            rows, columns = (reduced_from * 2)[-2:]
            larger = (rows, columns, channels)
            return reduced(fit(image, larger, resize), shape[:2])
        box = _box(image.size, (width, height), resize)
        left, top, right, bottom = _filled(image.size, (width, height), resize)
        filled = (right - left, bottom - top)
        if image.size != filled:
            image = image.resize(filled, Image.Resampling.LANCZOS, box=box)
        if filled != (width, height):
            canvas = Image.new(image.mode, (width, height))
            canvas.paste(image, (left, top))
            image = canvas
    return np.asarray(image).reshape(shape)


def fit_mask(is_set: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    """Return where a mask is set at all, in another size; bool [H, W].

    Args:
      is_set: bool, of any height and width.
      size: (H, W).
      resize: as in `fit`; a pixel is set if one that lies in its area is, even in part.
    """
    height, width = size
    left, top, right, bottom = _box(is_set.shape[::-1], (width, height), resize)
    x0, y0, x1, y1 = _filled(is_set.shape[::-1], (width, height), resize)
    rows, columns = _areas(top, bottom, y1 - y0), _areas(left, right, x1 - x0)
    found = np.array([is_set[a:b].any(axis=0) for a, b in rows])
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = np.array([found[:, a:b].any(axis=1) for a, b in columns]).T
    return mask


def _areas(first: float, last: float, count: int) -> list[tuple[int, int]]:
    """Return the pixels that each of `count` equal parts touches, beyond rounding."""
    ends = np.linspace(first, last, count + 1)
    begin, end = np.floor(ends[:-1] + 1e-6), np.ceil(ends[1:] - 1e-6)
    return list(zip(begin.astype(int).tolist(), end.astype(int).tolist(), strict=True))


def _box(
    size: tuple[int, ...], wanted: tuple[int, int], resize: str
) -> tuple[float, float, float, float]:
    """Return the part (left, top, right, bottom) that becomes the whole; both (W, H)."""
    if resize != "crop":
        return 0.0, 0.0, float(size[0]), float(size[1])
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    left = (size[0] - wanted[0] * scale) / 2
    top = (size[1] - wanted[1] * scale) / 2
    return left, top, left + wanted[0] * scale, top + wanted[1] * scale


def _filled(
    size: tuple[int, ...], wanted: tuple[int, int], resize: str
) -> tuple[int, int, int, int]:
    """Return the part of the result (left, top, right, bottom) that is no padding."""
    if resize != "pad":
        return 0, 0, *wanted
    scale = max(size[0] / wanted[0], size[1] / wanted[1], 1)
    width, height = (max(1, round(side / scale)) for side in size[:2])
    left, top = (wanted[0] - width) // 2, (wanted[1] - height) // 2
    return left, top, left + width, top + height


def _kind(head: bytes) -> str:
    if not head:
        raise Unreadable("the file is empty")
    kind = formats.image_kind(head)
    if kind is None:
        other = formats.other_kind(head)
        wanted = f"it is not a {formats.listed_kinds()} image"
        raise Unreadable(f"it is {other.name}; {other.remedy}" if other else wanted)
    return kind


def _open(file: IO[bytes], kind: str) -> Image.Image:
    if kind not in Image.OPEN:
        Image.init()
    try:
        # As Image.open does, which does not tell why an image cannot be read.
        image = Image.OPEN[kind][0](file, "")
    except Unreadable:
        raise
    except Exception as error:  # Damaged bytes make Pillow raise nearly any kind.
        raise Unreadable(f"this {kind} cannot be read: {reason(error)}") from error
    _check_size(image.width, image.height)
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels are taken for a decompression bomb")
    if not width * height:
        raise Unreadable("it has no pixels")


def _check_webp(head: bytes, num_bytes: int | None) -> None:
    """Check the size in the header, since Pillow's reader makes the canvas at once."""
    kind, size = head[12:16], head[20:30]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(size[i : i + 3], "little") for i in (4, 7))
    elif kind == b"VP8L" and size[:1] == b"\x2f":
        bits = int.from_bytes(size[1:5], "little")
        width, height = 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    elif kind == b"VP8 " and size[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(size[i : i + 2], "little") % 2**14 for i in (6, 8))
    else:
        raise Unreadable("it is damaged: it has no WebP header")
    _check_size(width, height)
    if num_bytes is not None and num_bytes < int.from_bytes(head[4:8], "little") + 8:
        raise Unreadable("it is truncated")


def _check_mode(image: Image.Image) -> None:
    tags = getattr(image, "tag_v2", {})
    bits = set(np.ravel(tags.get(_BITS, 8)))
    if image.mode == "F" or (tags and image.mode == "I") or not bits <= {1, 2, 4, 8, 16}:
        depth = "/".join(map(str, sorted(bits)))
        raise Unreadable(
            f"its pixels are numbers of {depth} bits, whose range is not known"
        )


def _without_end(content: bytes) -> bytes:
    """Return a JPEG of one scan without its end, so that the decoder notices missing data.

    Where the data end too early, at the marker of an end, it would make up the rest.
    """
    at, sequential = 2, False
    while content[at : at + 1] == b"\xff":
        marker, length = content[at + 1 : at + 2], content[at + 2 : at + 4]
        if marker == b"\xff":  # A byte that fills.
            at += 1
            continue
        at += 2 + int.from_bytes(length, "big")
        if marker in (b"\xc0", b"\xc1"):
            sequential = True
        if marker == b"\xda":
            end = _JPEG_MARKER.search(content, at)
            if sequential and end and end[0] == b"\xff\xd9":
                return content[: end.start()] + bytes(16)
            break
    return content


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette:
        # Not getpalette(), which would decode the image.
        raw, mode = bytes(image.palette.palette or b""), image.palette.rawmode or "RGB"
        flat = np.frombuffer(raw, np.uint8)
        if mode.endswith(";L"):  # All of red, then all of green, then all of blue.
            values = flat.reshape(3, -1).T
        else:
            values = flat.reshape(-1, len(mode))[:, :3]
        return bool((values == values[:, :1]).all())
    return image.mode in _GREY_MODES


def _load_png(image: Image.Image, whole: png.Png) -> Image.Image | None:
    """Decode a PNG and check that it is complete.

    Returns:
      The lower bytes of 16-bit colour, if these are needed to tell what is transparent.
    """
    low_bytes = None
    if whole.transparent and whole.header[2:4] == (16, 2):
        low_bytes = Image.open(io.BytesIO(whole.content), formats=("PNG",))
        # As if the bytes came in the other order: Pillow keeps the upper one.
        low_bytes.tile = [tile._replace(args="RGB;16L") for tile in low_bytes.tile]
        low_bytes.load()
    image.load()
    last = image.crop((0, image.height - 1, image.width, image.height))
    # Pixels that the data do not reach are 0.
    if whole.header.interlaced or not any(last.tobytes()):
        whole.check_complete()
    return low_bytes


def _plain(
    image: Image.Image,
    mode: str,
    key: tuple[int, ...] = (),
    low_bytes: Image.Image | None = None,
) -> Image.Image:
    """The image in sRGB on white, in mode L or RGB; strip by strip, to spare memory.

    Args:
      image: of any mode.
      mode: L or RGB.
      key: samples of the colour that is transparent, if there is one.
      low_bytes: those of its samples, if it has 16 bits.
    """
    changed = key or image.has_transparency_data or colours.transform_of(image)
    if image.mode == mode and not changed:
        return image
    if image.width * image.height <= _STRIP:
        return _plain_strip(image, mode, key, low_bytes)
    plain = Image.new(mode, image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        lower = low_bytes.crop(box) if low_bytes else None
        plain.paste(_plain_strip(image.crop(box), mode, key, lower), box)
    return plain


def _plain_strip(
    image: Image.Image, mode: str, key: tuple[int, ...], low_bytes: Image.Image | None
) -> Image.Image:
    seen = _differs(image, key, low_bytes) if key else None
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    image = colours.to_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    if seen is not None:
        image = Image.composite(image, Image.new(mode, image.size, "white"), seen)
    image.info = {}
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    wide = np.asarray(image).astype(np.int32)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # White is 0, in TIFF.
        wide = 65535 - wide
    narrow = Image.fromarray(np.clip((wide + 128) // 257, 0, 255).astype(np.uint8))
    narrow.info = image.info
    return narrow


def _differs(
    image: Image.Image, key: tuple[int, ...], low_bytes: Image.Image | None
) -> Image.Image:
    """Return a mask, mode L, of where an image has another colour than `key`."""
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    if low_bytes:
        samples = samples.astype(np.int32) * 256 + np.asarray(low_bytes)
    differs = samples.reshape(image.height, image.width, -1) != key
    return Image.fromarray(differs.any(-1).astype(np.uint8) * 255)
