"""Clips in Python: animations, videos, folders of frames and arrays as what a graph decodes.

A graph reads animated GIF, and PNG files one after the other (`encode_frames`). Pillow turns
animated WebP and APNG into these, and PyAV turns MP4, WebM and AVI:
`pip install "mmret_tf[video]"`.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence

from mmret_tf.data.decoders.pictures import (
    FORMATS,
    MAX_PIXELS,
    encode_png,
    read_picture,
    upright_rgb,
)
from mmret_tf.data.sources import InlineSource, Source, path_source

ClipSource: TypeAlias = str | os.PathLike[str] | bytes | npt.ArrayLike | Source

SUFFIXES = (".gif", ".webp", ".png", ".mp4", ".webm", ".avi")

# A clip of more frames keeps as many, evenly spaced; larger ones are made smaller.
MOST_FRAMES, LONGEST_SIDE = 64, 512

# A clip of more frames is refused (an hour has 108,000 at 30 a second).
LONGEST = 2**17

# How files begin whose frames are decoded here. An MP4 has its mark at the fifth byte; WebP and AVI
# are RIFF files with the mark of their kind at the ninth.
RIFF, RIFF_PLACE = b"RIFF", 8
WEBM, MP4, TAR = b"\x1a\x45\xdf\xa3", b"ftyp", b"ustar"
GIF, PNG = b"GIF8", b"\x89PNG\r\n\x1a\n"
TAR_PLACE = 257


def clip_source(clip: ClipSource) -> Source:
    """Turn any kind of clip into a source of encoded bytes.

    Args:
        clip: A path of a file or of a folder of frames, encoded bytes, or an array of levels `[n,
            height, width, 3]`, see `encode_frames`.

    Raises:
        ValueError: `clip` is something else.
    """
    if isinstance(clip, Source):
        return clip
    if isinstance(clip, bytes):
        return InlineSource(clip)
    if isinstance(clip, str | os.PathLike):
        return path_source(clip)
    return InlineSource(encode_frames(clip), "the clip")


def encode_frames(frames: npt.ArrayLike) -> bytes:
    """Encode frames as PNG files one after the other.

    Args:
        frames: Levels 0 to 255, `[n, height, width]`, or `[n, height, width, 1, 3 or 4]`.

    Raises:
        ValueError: The array has another shape or other numbers.

    >>> encode_frames(np.zeros((3, 2, 2, 3))).count(b"PNG")
    3
    """
    frames = np.asarray(frames)
    if frames.ndim not in (3, 4) or not len(frames):
        raise ValueError(f"frames must be an array [n, height, width, 3]; got {frames.shape}")
    return b"".join(encode_png(frame) for frame in frames)


def as_frames(contents: bytes) -> bytes:
    """A clip as what a graph decodes: animated WebP and APNG, videos, and folders of frames become
    PNG files; GIF and still pictures stay as they are.

    Args:
        contents: Encoded bytes; of a folder, an uncompressed tar of its pictures.

    Raises:
        ValueError: The bytes are damaged, or a video needs PyAV.
    """
    riff = contents[RIFF_PLACE : RIFF_PLACE + 4] if contents.startswith(RIFF) else b""
    if contents[4:8] == MP4 or contents.startswith(WEBM) or riff == b"AVI ":
        return _joined(_video_frames(contents))
    if contents[TAR_PLACE : TAR_PLACE + len(TAR)] == TAR:
        return _joined(_folder_frames(contents))
    if contents.startswith(GIF) and not _is_simple(contents):
        return _joined(_animation_frames(contents))
    is_apng = contents.startswith(PNG) and b"acTL" in contents[:64]
    return _joined(_animation_frames(contents)) if riff == b"WEBP" or is_apng else contents


def clip_pictures(contents: bytes, n: int, side: int) -> list[Image.Image]:
    """Evenly spaced frames of a clip in any format, by Pillow: a page need not wait for a graph.

    Args:
        contents: Encoded bytes.
        n: Number of frames; those of a shorter clip are repeated.
        side: Of the frames, which are cropped to squares, in pixels.

    Raises:
        ValueError: The bytes are damaged, or a video needs PyAV.

    >>> [frame.size for frame in clip_pictures(encode_frames(np.zeros((2, 3, 4))), n=3, side=2)]
    [(2, 2), (2, 2), (2, 2)]
    """
    is_gif = contents.startswith(GIF)
    contents = _joined(_animation_frames(contents)) if is_gif else as_frames(contents)
    files = [PNG + part for part in contents.split(PNG)[1:]] or [contents]
    places = np.rint(np.linspace(0, len(files) - 1, n)).astype(int).tolist()
    pictures = {place: read_picture(files[place], side)[2] for place in set(places)}
    return [pictures[place] for place in places]


def _is_simple(contents: bytes) -> bool:
    """Whether the graph decodes a GIF as Pillow does; a damaged one too, which it refuses. Without
    TensorFlow, as in a client, that is not known, and Pillow decodes it."""
    try:
        import tensorflow as tf
    except ImportError:
        return False

    from mmret_tf.data.decoders.formats import gif
    from mmret_tf.data.decoders.formats.binary import PADDING

    data = tf.io.decode_raw(contents + bytes(PADDING), tf.uint8)
    try:
        return bool(gif.is_simple(tf.constant(contents), data))
    except tf.errors.OpError:
        return True


def _joined(frames: Iterable[Image.Image]) -> bytes:
    """PNG files of evenly spaced frames, one after the other; ValueError if they are damaged.

    The frames come one by one, and only those that may be chosen are kept: where there are twice as
    many as wanted, every other one is left out from there on.
    """
    kept: list[bytes] = []
    step = 1
    try:
        for number, frame in enumerate(frames):
            if number == LONGEST:
                raise ValueError(f"too long: more than {LONGEST} frames")
            if number % step:
                continue
            picture = upright_rgb(frame)
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            kept.append(encode_png(np.asarray(picture)))
            if len(kept) == 2 * MOST_FRAMES:
                kept, step = kept[::2], 2 * step
    except (
        OSError,
        SyntaxError,
        EOFError,
        tarfile.TarError,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"not a whole clip: {error}") from None
    if not kept:
        raise ValueError("not a whole clip: it has no frame")
    return b"".join(kept)


def _check_size(frames) -> None:
    """Refuse what has a `width` and a `height` of too many pixels, before it is decoded."""
    if frames.width * frames.height > MAX_PIXELS:
        raise ValueError(f"too large: more than {MAX_PIXELS} pixels")


def _animation_frames(contents: bytes) -> Iterator[Image.Image]:
    """The frames of an animated GIF, WebP or PNG, as Pillow lays them over each other."""
    with Image.open(io.BytesIO(contents), formats=FORMATS) as file:
        _check_size(file)
        for frame in ImageSequence.Iterator(file):
            yield frame.convert("RGBA")


def _folder_frames(contents: bytes) -> Iterator[Image.Image]:
    """The pictures of a folder, by their names."""
    with tarfile.open(fileobj=io.BytesIO(contents), mode="r:") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.isreg():
                frame = Image.open(archive.extractfile(member), formats=FORMATS)
                _check_size(frame)
                yield frame


def _video_frames(contents: bytes) -> Iterator[Image.Image]:
    """The frames of an MP4, WebM or AVI; ValueError if it is damaged, or PyAV is not installed."""
    try:
        import av
    except ImportError:
        raise ValueError(
            'MP4, WebM and AVI need PyAV: pip install "mmret_tf[video]", or save an animated GIF'
        ) from None
    try:
        with av.open(io.BytesIO(contents)) as file:
            _check_size(file.streams.video[0])
            for frame in file.decode(video=0):
                yield frame.to_image()
    except (av.error.FFmpegError, IndexError) as error:
        reason = getattr(error, "strerror", error)  # the rest is a number
        raise ValueError(f"not a whole video: {reason}") from None
