"""From animations to evenly spaced frames (视频预处理), in TensorFlow ops.

One definition serves `tf.data` in training, `encode` in Python, and the graph that is exported.
"""

import functools
import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from mmret_tf.data.decoders.clips import (
    MOST_FRAMES,
    ClipSource,
    as_frames,
    clip_pictures,
    clip_source,
)
from mmret_tf.data.decoders.formats import gif, png
from mmret_tf.data.decoders.formats.binary import PADDING, starts_with
from mmret_tf.data.decoders.image import crop_and_resize, decode_failure, decode_image

CHECKED_SIDE = 8  # pixels, of frames that are decoded to see whether they can be
PLAYED_FRAMES, PLAYED_SIDE, PLAYED_MS = 16, 320, 125  # of what a page plays: two seconds


def decode_video(
    contents: tf.Tensor,
    frames: int,
    size: int,
    seed: tf.Tensor | None = None,
    mirror: bool | tf.Tensor = False,
    min_crop: float = 0.8,
) -> tf.Tensor:
    """Decode evenly spaced frames of an animation, each cropped to a square. Section 3.1(1).

    The first and the last frame are among them; of a shorter animation, frames are repeated.

    Args:
        contents: Encoded bytes, a scalar string: an animated GIF, PNG files one after the other,
            or a picture that stands still.
        frames: Number of frames of the result.
        size, seed, mirror, min_crop: As for `crop_and_resize`; all frames are cropped alike.

    Returns:
        uint8 `[frames, size, size, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are something else, or damaged; a frame has more
            than 2**26 pixels, or all frames of a GIF have.

    >>> from mmret_tf.data.drawn.clips import draw_clips
    >>> decode_video(draw_clips("dev", size=1)[0].encode(), frames=4, size=32).shape
    TensorShape([4, 32, 32, 3])
    """
    data = tf.io.decode_raw(tf.strings.join([contents, bytes(PADDING)]), tf.uint8)

    def prepared(picture: tf.Tensor) -> tf.Tensor:
        return crop_and_resize(picture, size, seed, mirror, min_crop)

    def from_gif() -> tf.Tensor:
        pictures = gif.decode_frames(contents, data)
        return _prepared(tf.gather(pictures, _spread(tf.shape(pictures)[0], frames)), prepared)

    def from_files() -> tf.Tensor:
        # The parts between the marks; what comes before the first mark is empty.
        parts = tf.strings.split([contents], png.MAGIC).flat_values[1:]
        files = tf.strings.join([png.MAGIC, tf.gather(parts, _spread(tf.size(parts), frames))])
        return _prepared(files, lambda file: prepared(decode_image(file)))

    def from_picture() -> tf.Tensor:
        return tf.repeat(prepared(decode_image(contents))[None], frames, axis=0)

    found = tf.case(
        [
            (starts_with(data, 0, gif.MAGIC), from_gif),
            (starts_with(data, 0, png.MAGIC), from_files),
        ],
        from_picture,
    )
    return tf.ensure_shape(found, (frames, size, size, 3))


def _spread(n: tf.Tensor, frames: int) -> tf.Tensor:
    """Numbers of evenly spaced frames, from the first of n to the last; the middle one alone."""
    if frames == 1:
        return tf.reshape((n - 1) // 2, (1,))
    places = tf.linspace(0.0, tf.cast(n - 1, tf.float32), frames)
    return tf.cast(tf.round(places), tf.int32)


def _prepared(pictures: tf.Tensor, prepare) -> tf.Tensor:
    """Frames of one size, from pictures or from encoded ones."""
    return tf.map_fn(prepare, pictures, fn_output_signature=tf.uint8)


def load_video(source: ClipSource, frames: int, size: int) -> np.ndarray:
    """Load any kind of clip as the frames that a tower takes. Section 3.1(1).

    Args:
        source: A path of a file or of a folder of frames, encoded bytes, or an array, see
            `clip_source`.
        frames, size: As for `decode_video`.

    Returns:
        uint8 `[frames, size, size, 3]`.

    Raises:
        ValueError: The file is missing or not a clip that can be read.
    """
    source = clip_source(source)
    try:
        return frames_decoder(frames, size)([as_frames(source.read())])[0].numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{source.name}: {decode_failure(error)}") from None


@functools.cache
def frames_decoder(frames: int, size: int) -> tf.types.experimental.PolymorphicFunction:
    """Encoded clips `[n]` to uint8 `[n, frames, size, size, 3]`: traced once a size."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def clips(contents):
        return tf.map_fn(
            lambda each: decode_video(each, frames, size),
            contents,
            fn_output_signature=tf.TensorSpec((frames, size, size, 3), tf.uint8),
        )

    return clips


def check_video(contents: bytes) -> None:
    """Refuse bytes that cannot be read as a clip; ValueError with the reason."""
    try:
        frames_decoder(MOST_FRAMES, CHECKED_SIDE)(tf.constant([as_frames(contents)]))
    except tf.errors.OpError as error:
        raise ValueError(decode_failure(error)) from None


def playable_video(contents: bytes) -> tuple[str, bytes]:
    """A clip as a page plays it: an animation that repeats for ever.

    Args:
        contents: Encoded bytes.

    Returns:
        The media type, and an animated WebP of evenly spaced frames.

    Raises:
        ValueError: The bytes cannot be decoded.
    """
    first, *others = clip_pictures(contents, PLAYED_FRAMES, PLAYED_SIDE)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=PLAYED_MS, loop=0)
    return "image/webp", file.getvalue()


def video_thumbnail(contents: bytes, side: int) -> Image.Image:
    """Four frames of a clip as a square picture, in reading order; a grey one if it cannot be
    decoded.

    Args:
        contents: Encoded bytes.
        side: Of the picture, in pixels.
    """
    picture = Image.new("RGB", (side, side), "lightgrey")
    try:
        frames = clip_pictures(contents, 4, side // 2)
    except ValueError:
        ImageDraw.Draw(picture).text((8, side // 2), "not readable", fill="black")
        return picture
    for number, frame in enumerate(frames):
        place = number % 2 * (side - side // 2), number // 2 * (side - side // 2)
        picture.paste(frame, place)
    return picture
