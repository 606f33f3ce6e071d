"""Work on a PNG that Pillow leaves undone: checks, the transparent colour, texts skipped.

The pixels are Pillow's; the chunks are read here, by the PNG specification (third
edition): https://www.w3.org/TR/png-3/.
"""

import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from diffusion_jax.data.unreadable import Unreadable

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MAX_TEXT = 2**20  # Bytes of a text or a colour profile, unpacked.
# The texts that are kept: those in which a rotation may be written.
_TEXTS = (b"exif\0", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_KEPT = (b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
# First column and row, and their steps, of the seven passes of an interlaced image.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class Header(NamedTuple):
    """The chunk IHDR.

    Attributes:
      colour: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    """

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the image data, unpacked: each row is a byte and its pixels."""
        bits = self.depth * _CHANNELS[self.colour]
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for left, top, right, down in passes:
            columns = -(-(self.width - left) // right)
            rows = -(-(self.height - top) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * bits + 7) // 8)
        return total


class Png(NamedTuple):
    """A PNG without what is no part of its first image.

    Attributes:
      content: for Pillow.
      header: of it.
      transparent: the samples of the colour that is transparent, if a grey or RGB image
        has one; of less than 8 bits scaled to 8, as Pillow does it.
      packed: the compressed image data.
    """

    content: bytes
    header: Header
    transparent: tuple[int, ...]
    packed: list[memoryview]

    def check_complete(self) -> None:
        """Raise Unreadable if the image data end before the last pixel."""
        unpacker, missing = zlib.decompressobj(), self.header.num_bytes
        for part in self.packed:
            piece: bytes | memoryview = part
            while piece and missing > 0:
                missing -= len(unpacker.decompress(piece, 2**16))
                piece = unpacker.unconsumed_tail
        if missing > 0:
            raise Unreadable("it is truncated: its image data end too early")


def read_header(file: IO[bytes]) -> Header:
    """Return the header of a PNG.

    Raises:
      Unreadable: if it is cut off, damaged or that of no PNG.
    """
    return _header(file.read(33))


def is_grey(file: IO[bytes], header: Header) -> bool:
    """Return whether a PNG is grey, from its header and what follows that in the file.

    Raises:
      Unreadable: if it should have a palette, and has none.
    """
    if header.colour != 3:
        return header.colour in (0, 4)
    while True:
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IDAT":
            raise Unreadable("it is damaged: it has no palette")
        if kind == b"PLTE":
            colours = file.read(min(length, 768))
            return colours[::3] == colours[1::3] == colours[2::3]
        file.seek(length + 4, 1)


def read(content: bytes) -> Png:
    """Return the parts of a PNG that make up its first image.

    Raises:
      Unreadable: if a chunk that these need is missing, cut off or damaged.
    """
    header = _header(content[:33])
    start: list[bytes | memoryview] = [content[:33]]
    transparent: tuple[int, ...] = ()
    data: list[memoryview] = []
    packed: list[memoryview] = []
    for kind, body, whole in _chunks(memoryview(content), 33):
        if kind == b"IDAT":
            data.append(whole)
            packed.append(body)
        elif kind == b"tRNS" and header.colour in (0, 2):
            transparent = _transparent(bytes(body), header)
        elif kind != b"tRNS" or header.colour == 3:
            start.append(whole)
    if not data:
        raise Unreadable("it is damaged: it has no image data")
    return Png(b"".join([*start, *data, _END]), header, transparent, packed)


def _header(head: bytes) -> Header:
    if head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        apple = (
            ": it is of the kind that only Apple's tools read" if b"CgBI" in head else ""
        )
        raise Unreadable("it has no PNG header" + apple)
    if len(head) < 33:
        raise Unreadable("it is truncated")
    if zlib.crc32(head[12:29]) != int.from_bytes(head[29:33], "big"):
        raise Unreadable("it is damaged: the checksum of its header is wrong")
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    depth, colour, interlaced = head[24], head[25], head[28]
    if depth not in _DEPTHS.get(colour, ()) or not width or not height:
        raise Unreadable(
            f"no PNG has {width} x {height} pixels of {depth} bits and colour type {colour}"
        )
    return Header(width, height, depth, colour, bool(interlaced))


def _chunks(content: memoryview, at: int) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Kind, body and all of each chunk that is kept, up to the end."""
    while at + 8 <= len(content):
        length, kind = (
            int.from_bytes(content[at : at + 4], "big"),
            bytes(content[at + 4 : at + 8]),
        )
        whole = content[at : at + length + 12]
        at += length + 12
        body = whole[8:-4]
        if kind == b"IEND":
            return
        if kind != b"IDAT" and kind not in _KEPT:
            continue
        cut = len(whole) < length + 12
        right = not cut and zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big")
        if not right and kind in (b"IDAT", b"PLTE", b"tRNS"):
            what = (
                "truncated" if cut else f"damaged: the checksum of {kind.decode()} is wrong"
            )
            raise Unreadable(f"it is {what}")
        if right and _is_small(kind, body):
            yield kind, body, whole


def _is_small(kind: bytes, body: memoryview) -> bool:
    """Return whether a text or profile may matter and does not unpack to something huge."""
    if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
        if len(body) > _MAX_TEXT:
            return False
        name, _, rest = bytes(body).partition(b"\0")
        if kind != b"iCCP" and name + b"\0" not in _TEXTS:
            return False
        packed = rest[1:] if kind in (b"zTXt", b"iCCP") else b""
        if kind == b"iTXt" and rest[:1] == b"\1":
            packed = rest[2:].split(b"\0", 2)[-1]
        unpacker = zlib.decompressobj()
        try:
            unpacker.decompress(packed, _MAX_TEXT)
        except zlib.error:
            return False
        return not unpacker.unconsumed_tail
    return True


def _transparent(body: bytes, header: Header) -> tuple[int, ...]:
    """The samples in a tRNS, of whose bits only as many count as the image has."""
    count = _CHANNELS[header.colour]
    if len(body) < 2 * count:
        raise Unreadable("it is damaged: its tRNS is too short")
    samples = (int.from_bytes(body[2 * i : 2 * i + 2], "big") for i in range(count))
    scale = 1 if header.depth == 16 else 255 // (2**header.depth - 1)
    return tuple(sample % 2**header.depth * scale for sample in samples)
