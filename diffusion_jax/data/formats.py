"""Kinds of files: what is read, and what else lies where images should."""

import re
from typing import NamedTuple

from PIL import features

# Suffixes of the images that this Pillow reads, by the name that Pillow has for a kind.
_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
}
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}


def _is_built_in(kind: str) -> bool:
    name = _OPTIONAL.get(kind)
    if name is None:
        return True
    known = {**features.modules, **features.codecs}
    return name in known and bool(features.check(name))


KINDS = tuple(kind for kind in _SUFFIXES if _is_built_in(kind))
SUFFIXES = tuple(suffix for kind in KINDS for suffix in _SUFFIXES[kind])
SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
CLIP_SUFFIXES = (".gif", ".webp", ".mp4")
SUFFIXES_OF = {"images": SUFFIXES, "sounds": SOUND_SUFFIXES, "clips": CLIP_SUFFIXES}

_MAGIC = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c-\x7c]\x00\x00\x00",
    "TIFF": rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+",
    "PPM": rb"P[1-6]\s",
    "AVIF": rb"....ftyp(avi[fs]|mif1.{4}([^\x00]{4})*?avif)",
    "JPEG2000": rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
}

_ARRAYS = "write its images with np.savez(FILE, images), uint8 [N, H, W, C]"
_UNPACK = "unpack it, and give the folder"
_PACKED = "unpack it first"
_OTHERS = (
    (rb"\x93NUMPY", "a .npy file", "give it with --config.data.source=npz"),
    (
        rb"PK\x03\x04|PK\x05\x06",
        "a zip",
        "its images are read from --config.data.source=folder",
    ),
    (rb"\x80[\x02-\x05]", "a pickle, which can run programs and is not read", _ARRAYS),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", _ARRAYS),
    (rb"PAR1", "a Parquet file", _ARRAYS),
    (rb"ARROW1", "an Arrow file", _ARRAYS),
    (rb"MATLAB 5", "a file of MATLAB", _ARRAYS),
    (rb"SQLite format 3", "an SQLite file", _ARRAYS),
    (rb".{257}ustar", "a tar", _UNPACK),
    (rb"Rar!", "a RAR archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"\x1f\x8b", "compressed by gzip", _PACKED),
    (rb"BZh[1-9]", "compressed by bzip2", _PACKED),
    (rb"\xfd7zXZ\x00", "compressed by xz", _PACKED),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", _PACKED),
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC image", "save it as PNG or JPEG"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL image", "save it as PNG or JPEG"),
    (rb"8BPS", "a Photoshop file", "save it as PNG or JPEG"),
    (rb"%PDF", "a PDF", "save its pages as PNG or JPEG"),
    (rb"\s*<(!doctype html|html)", "a web page", "download the file itself"),
    (rb"version https://git-lfs", "a pointer of Git LFS", "get the file by `git lfs pull`"),
)
HEAD = 264  # This many first bytes tell what a file is.


class Other(NamedTuple):
    """A kind of file that is no image.

    Attributes:
      name: "a tar".
      remedy: what to do to train on it.
    """

    name: str
    remedy: str


def image_kind(head: bytes) -> str | None:
    """Return "PNG", "JPEG", ... by the first bytes of a file; None if it is no image."""
    for kind in KINDS:
        if re.match(_MAGIC[kind], head, re.DOTALL):
            return kind
    return None


def other_kind(head: bytes) -> Other | None:
    """Return what a file is, by its first bytes, if it is of a kind that is known."""
    for magic, name, remedy in _OTHERS:
        if re.match(magic, head, re.DOTALL | re.IGNORECASE):
            return Other(name, remedy)
    return None


def kind_of_name(name: str) -> str | None:
    """Return "images", "sounds" or "clips", by the suffix of a name; None for others."""
    for kind, suffixes in SUFFIXES_OF.items():
        if name.lower().endswith(suffixes):
            return kind
    return None


def listed_kinds() -> str:
    """Return the kinds that are read, for messages."""
    return ", ".join(KINDS[:-1]) + " or " + KINDS[-1]
