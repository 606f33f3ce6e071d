"""Decoding of clip files (GIF, animated WebP, MP4) to uint8 frames of one shape.

PyAV, which decodes MP4, is imported where it is used: it is not always installed.
"""

import contextlib
import dataclasses
import fractions
import importlib.util
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO, ClassVar

import numpy as np
from PIL import Image

from diffusion_jax.data import formats, images
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.unreadable import Unreadable, reason
from diffusion_jax.runtime.errors import BadRequest

_MAX_PIXELS = 900_000_000  # More in all frames are taken for a decompression bomb.
_MP4 = "MP4"


@dataclasses.dataclass(frozen=True)
class ClipFormat(FileFormat):
    """Clip files, which become uint8 [F, H, W, C]: their first frames, each fitted.

    How long a file shows a frame does not matter. A frame is what a player shows at its
    time: Pillow composes those of a GIF.

    Attributes:
      num_frames: frames of a clip; a file with fewer cannot be read.
      resize: "crop" or "squash"; see `images.fit`.
    """

    num_frames: int
    resize: str = "crop"

    name: ClassVar[str] = "clips"
    one: ClassVar[str] = "clip"
    suffixes: ClassVar[tuple[str, ...]] = formats.CLIP_SUFFIXES
    dtype: ClassVar[type] = np.uint8
    channels: ClassVar[Mapping[int, str]] = {1: "grey", 3: "colour"}
    widened: ClassVar[str] = "coloured"

    def check_installed(self, names: Sequence[str]) -> None:
        if any(name.lower().endswith(".mp4") for name in names) and not reads_mp4():
            raise BadRequest(
                "MP4 files are read by PyAV, which is not installed: "
                "pip install 'diffusion-jax[clips]' (or: pip install av)"
            )

    def num_channels(self, file: IO[bytes], size: int | None = None) -> int:
        """Return 1 if the colours of the first frame are grey, 3 otherwise.

        Raises:
          Unreadable: if it is no clip, has too few frames, or more pixels than are sane.
        """
        kind = _kind(file.read(formats.HEAD))
        file.seek(0)
        if kind == _MP4:
            with _reading(), _container(file) as container:
                stream = _video(container)
                self._check(stream.frames or self.num_frames, stream.width, stream.height)
            return 3
        channels = images.num_channels(file, size)
        file.seek(0)
        with _reading(), images.open_image(file, size) as image:
            self._check(_num_frames(image), image.width, image.height)
        return channels

    def _check(self, count: int, width: int, height: int) -> None:
        if count < self.num_frames:
            raise _too_short(count, self.num_frames)
        if self.num_frames * width * height > _MAX_PIXELS:
            raise Unreadable(
                f"{self.num_frames} frames of {width} x {height} pixels are taken for a "
                "decompression bomb"
            )

    def decode(self, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """Return the first frames of a clip; uint8 [F, H, W, C].

        Args:
          content: of a GIF, WebP or MP4 file.
          shape: (F, H, W, C) with C 1 or 3; F counts, not `num_frames`.

        Raises:
          Unreadable: if it is none of these, damaged, too short or too large.
        """
        wanted, height, width, channels = shape
        kind = _kind(content[: formats.HEAD])
        frames = _frames_of_mp4(content) if kind == _MP4 else _frames_of_image(content)
        # The name of the tracks of an MP4 that players need a key for.
        is_encrypted = kind == _MP4 and b"encv" in content
        with _reading("it is encrypted" if is_encrypted else ""):
            clip = []
            for image in itertools.islice(frames, wanted):
                self._check(self.num_frames, image.width, image.height)
                clip.append(images.fit(image, (height, width, channels), self.resize))
        if len(clip) < wanted:
            raise _too_short(len(clip), wanted)
        return np.stack(clip)


def reads_mp4() -> bool:
    """Return whether PyAV is installed, which reads and writes MP4."""
    return importlib.util.find_spec("av") is not None


def write_mp4(file: BinaryIO, frames: Sequence[Image.Image], seconds: float) -> None:
    """Write pictures as an MP4, each shown for this many seconds.

    Sides become even, as H.264 needs them, by repeating the last row and column.
    """
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    rate = fractions.Fraction(1000, round(1000 * seconds))
    width, height = frames[0].size
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=rate, pix_fmt="yuv420p")
        stream.width, stream.height = width + width % 2, height + height % 2
        for image in frames:
            pixels = np.pad(np.asarray(image.convert("RGB")), odd, mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _kind(head: bytes) -> str:
    """Return "GIF", "WEBP" or "MP4" by the first bytes of a file."""
    kind = formats.image_kind(head)
    if kind in ("GIF", "WEBP"):
        return kind
    other = formats.other_kind(head)
    if other:
        raise Unreadable(f"it is {other.name}; {other.remedy}")
    if kind:
        raise Unreadable(f"it is one image ({kind}), not a clip")
    if head[4:8] == b"ftyp":
        return _MP4
    raise Unreadable("it is not a GIF, WebP or MP4" if head else "the file is empty")


def _num_frames(image: Any) -> int:
    return image.n_frames  # Only the classes of Pillow's formats with frames have it.


def _frames_of_image(content: bytes) -> Iterator[Image.Image]:
    with images.open_image(io.BytesIO(content), len(content)) as image:
        for index in range(_num_frames(image)):
            image.seek(index)
            yield image


def _frames_of_mp4(content: bytes) -> Iterator[Image.Image]:
    with _container(io.BytesIO(content)) as container:
        stream = _video(container)
        # Otherwise pixels that are lost are made up from what is around them.
        stream.codec_context.options = {"err_detect": "explode"}
        for frame in container.decode(stream):
            image = frame.to_image()
            # Phones do not turn what they film; the file tells the player to.
            yield image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _container(file: IO[bytes]) -> Any:
    import av

    # The format is given, since others (playlists) name files that would be read as well.
    return av.open(file, format="mp4")


def _video(container: Any) -> Any:
    """Return the pictures of an open MP4."""
    if not container.streams.video:
        raise Unreadable("it has no pictures")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise Unreadable(
            "this PyAV has no decoder for it; convert it to H.264 (ffmpeg -i IN -c:v "
            "libx264 OUT.mp4) or to a GIF"
        )
    return stream


def _too_short(count: int, wanted: int) -> Unreadable:
    frames = "1 frame" if count == 1 else f"{count:,} frames"
    return Unreadable(f"it has {frames}, fewer than data.num_frames ({wanted:,})")


@contextlib.contextmanager
def _reading(known: str = "") -> Iterator[None]:
    """Turn whatever damaged bytes make a library raise into Unreadable.

    Args:
      known: the reason, if it is known.
    """
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        # Errors of FFmpeg have a text without numbers.
        said = known or getattr(error, "strerror", None) or reason(error)
        raise Unreadable(said) from error
