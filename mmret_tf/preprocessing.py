"""From files to tensors: image bytes to uint8 RGB, and captions to token ids (图像与文本预处理).

Everything here is made of TensorFlow ops, so that one and the same definition serves `tf.data` in
training, `predict` in Python, and the graph that is exported to TF Serving.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from mmret_tf.image_headers import integer, read_jpeg_header, read_webp_header, starts_with
from mmret_tf.normalization import nfkc

# A picture of more pixels than this is refused before it is decoded (8192 x 8192: 192 MiB).
MAX_PIXELS = 2**26

ImageSource = "str | os.PathLike[str] | bytes | np.ndarray | Image.Image"


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def decode_image(contents: tf.Tensor) -> tf.Tensor:
    """Decode JPEG, PNG, GIF (first frame), BMP or still WebP bytes to RGB. Section 3.1(1).

    Transparency is laid over white, and a JPEG is turned upright by its EXIF orientation. The
    size is read from the header and checked before anything is decoded.

    Args:
        contents: the encoded bytes, a scalar string.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are no whole image of these five formats, or
            the picture has more than `MAX_PIXELS` pixels.

    >>> png = tf.io.encode_png(tf.zeros((2, 3, 4), tf.uint8))  # transparent all over
    >>> decode_image(png).shape, decode_image(png)[0, 0].numpy().tolist()
    (TensorShape([2, 3, 3]), [255, 255, 255])
    """
    tf.debugging.Assert(tf.strings.length(contents) > 0, ["empty file"])
    # Zeros behind the end let the header be read without a bounds check at every byte.
    data = tf.pad(tf.io.decode_raw(contents, tf.uint8), [[0, 64]])
    is_jpeg = starts_with(data, 0, b"\xff\xd8\xff")
    is_png = starts_with(data, 0, b"\x89PNG\r\n\x1a\n")
    is_gif = starts_with(data, 0, b"GIF8")
    is_bmp = starts_with(data, 0, b"BM")
    is_webp = starts_with(data, 0, b"RIFF") & starts_with(data, 8, b"WEBP")
    tf.debugging.Assert(
        is_jpeg | is_png | is_gif | is_bmp | is_webp,
        ["not an image: expected JPEG, PNG, GIF, BMP or WebP"],
    )
    # TensorFlow 2.20 writes past its buffer when it decodes one of these.
    is_animated = starts_with(data, 12, b"VP8X") & (data[20] // 2 % 2 == 1)
    tf.debugging.Assert(
        ~(is_webp & is_animated), ["an animated WebP: save its first frame as a picture"]
    )

    orientation = tf.constant(1)
    if is_jpeg:
        height, width, orientation = read_jpeg_header(data)
    elif is_png:
        height, width = integer(data, 20, 4), integer(data, 16, 4)
    elif is_gif:
        height, width = integer(data, 8, 2, "little"), integer(data, 6, 2, "little")
    elif is_bmp:  # a negative height means that the rows are stored from the top
        height, width = tf.abs(integer(data, 22, 4, "little")), integer(data, 18, 4, "little")
    else:
        height, width = read_webp_header(data)
    has_size = tf.debugging.Assert(
        (height > 0) & (width > 0), ["not a whole image: it ends in its header"]
    )
    is_small = tf.debugging.Assert(
        tf.cast(height, tf.int64) * tf.cast(width, tf.int64) <= MAX_PIXELS,
        [tf.strings.format("too large: {} x {} pixels, at most 2**26 in all", (width, height))],
    )
    with tf.control_dependencies([has_size, is_small]):  # or TensorFlow may decode before it checks
        contents = tf.identity(contents)

    if is_jpeg:
        image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    elif is_png:
        image = _over_white(tf.io.decode_png(contents, channels=4))
    elif is_webp:
        image = tf.io.decode_webp(contents)[0]  # it decodes alpha only where the file has it
        if tf.shape(image)[2] == 4:
            image = _over_white(image)
    elif is_gif:
        image = tf.io.decode_image(contents, channels=3, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, 3))
    else:
        image = tf.io.decode_bmp(contents)  # the fourth channel of a BMP is unused, not alpha
        if tf.shape(image)[2] == 1:
            image = tf.image.grayscale_to_rgb(image)
        image = image[:, :, :3]
    return _upright(tf.ensure_shape(image, (None, None, 3)), orientation)


def crop_and_resize(
    image: tf.Tensor,
    size: int,
    seed: tf.Tensor | None = None,
    flip: bool | tf.Tensor = True,
    min_crop: float = 0.8,
) -> tf.Tensor:
    """Make a square of one size of any picture, its aspect kept.

    Without a seed, the centre square of the shorter side is taken: the picture as it is used in
    prediction. With a seed, a square of `min_crop` to 1 of that side is taken from a random place,
    and mirrored half of the time: the training mode.

    Args:
        image: uint8 `[height, width, 3]`.
        size: side of the result, in pixels.
        seed: `[2]` integers that decide the crop and the flip; `None` for the centre crop.
        flip: whether this picture may be mirrored (not if its caption says "left", say).
        min_crop: above 0 and up to 1, which loses nothing of a square picture.

    Returns:
        uint8 `[size, size, 3]`.

    >>> crop_and_resize(tf.zeros((20, 30, 3), tf.uint8), 8).shape
    TensorShape([8, 8, 3])
    """
    shape = tf.shape(image)[:2]
    side = tf.reduce_min(shape)
    if seed is None:
        top_left = (shape - side) // 2
    else:
        scale, top, left, coin = tf.unstack(tf.random.stateless_uniform([4], seed))
        scale = min_crop + (1 - min_crop) * scale
        side = tf.maximum(1, tf.cast(tf.round(tf.cast(side, tf.float32) * scale), tf.int32))
        room = tf.cast(shape - side + 1, tf.float32)
        top_left = tf.cast(tf.stack([top, left]) * room, tf.int32)
    image = image[top_left[0] : top_left[0] + side, top_left[1] : top_left[1] + side]
    image = tf.cond(
        side == size,  # as it is where pictures were made ready before
        lambda: image,
        lambda: _to_levels(tf.image.resize(image, (size, size), antialias=True)),
    )
    if seed is not None:
        mirrored = tf.cast(flip, tf.bool) & (coin < 0.5)
        image = tf.where(mirrored, tf.reverse(image, [1]), image)
    return tf.ensure_shape(image, (size, size, 3))


def _to_levels(image: tf.Tensor) -> tf.Tensor:
    """Round to uint8."""
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


@functools.cache
def _decoder(image_size: int) -> tf.types.experimental.ConcreteFunction:
    """Bytes to the square picture of one size, traced once a size."""
    return tf.function(
        lambda contents: crop_and_resize(decode_image(contents), image_size),
        input_signature=[tf.TensorSpec((), tf.string)],
    ).get_concrete_function()


@functools.cache
def _cropper(image_size: int) -> tf.types.experimental.ConcreteFunction:
    """Levels `[height, width, 3]` to the square picture of one size, traced once a size."""
    return tf.function(
        lambda image: crop_and_resize(image, image_size),
        input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)],
    ).get_concrete_function()


def load_image(source: ImageSource, image_size: int) -> np.ndarray:
    """Any picture that a user may hold, as the square array that a tower takes. Section 3.1(1).

    Of a picture that is no square, the centre is taken; its aspect is kept.

    Args:
        source: a path, encoded bytes, a PIL image, or an array `[height, width]`,
            `[height, width, 1]`, `[..., 3]` or `[..., 4]` of levels 0 to 255.
        image_size: side of the result, in pixels.

    Returns:
        uint8 `[image_size, image_size, 3]`.

    Raises:
        ValueError: the file is missing or holds no picture, or the array has another shape or
            levels outside 0 to 255.

    >>> grey = np.array([[0, 10, 20, 30], [0, 10, 20, 30]])  # 2 pixels high, 4 wide
    >>> load_image(grey, image_size=2)[:, :, 0].tolist()  # of [2, 2, 3], red
    [[10, 20], [10, 20]]
    """
    name = "the image"
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror or error}") from None
    if isinstance(source, bytes):
        try:
            return _decoder(image_size)(source).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(f"{name}: {decode_failure(error)}") from None
    if isinstance(source, Image.Image):
        channels = "RGBA" if source.has_transparency_data else "RGB"
        source = np.asarray(ImageOps.exif_transpose(source).convert(channels))
    return _cropper(image_size)(rgb_array(source)).numpy()


def load_batches(
    sources: Sequence[ImageSource] | np.ndarray, image_size: int, batch_size: int = 64
) -> Iterator[np.ndarray]:
    """Pictures in batches; while one batch is used, all cores prepare the next.

    Args:
        sources: what `load_image` takes, in any mix.
        image_size: side of the results, in pixels.
        batch_size: the last batch may be smaller.

    Yields:
        uint8 `[batch, image_size, image_size, 3]`.

    Raises:
        ValueError: as `load_image` does.

    >>> [batch.shape for batch in load_batches(np.zeros((3, 9, 9, 3)), 8, batch_size=2)]
    [(2, 8, 8, 3), (1, 8, 8, 3)]
    """
    _decoder(image_size), _cropper(image_size)  # traced once, not by every thread
    with ThreadPoolExecutor() as pool:
        ahead: list[Future] = []
        for start in range(0, len(sources) + batch_size, batch_size):
            ready = ahead
            ahead = [
                pool.submit(load_image, source, image_size)
                for source in sources[start : start + batch_size]
            ]
            if ready:
                yield np.stack([image.result() for image in ready])


def decode_failure(error: tf.errors.OpError) -> str:
    """The reason why `decode_image` refused some bytes, without TensorFlow's trace around it."""
    said = re.search(r"assertion failed: \[(.*?)\]", error.message)
    return said[1] if said else "not a whole image: truncated or damaged"


def rgb_array(pixels: np.ndarray) -> tf.Tensor:
    """Check an array of levels and bring it to uint8 `[height, width, 3]`."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(
            "an image array must have shape [height, width], [height, width, 1], [..., 3] or "
            f"[..., 4]; got {pixels.shape}"
        )
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"an image array must hold levels from 0 to 255; got {pixels.dtype}")
    low, high = np.min(pixels), np.max(pixels)
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise ValueError(f"an image array must hold levels from 0 to 255; got {low} to {high}")
    pixels = np.rint(pixels).astype(np.uint8)
    if pixels.shape[2] == 4:
        return _over_white(tf.constant(pixels))
    return tf.constant(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _over_white(rgba: tf.Tensor) -> tf.Tensor:
    """uint8 `[height, width, 4]` laid over a white sheet -> uint8 `[height, width, 3]`."""
    levels = tf.cast(rgba, tf.float32)
    alpha = levels[:, :, 3:] / 255
    return tf.cast(tf.round(levels[:, :, :3] * alpha + 255 * (1 - alpha)), tf.uint8)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo how the camera was held: EXIF orientation 1 to 8 (1 is upright)."""
    if orientation >= 5:
        image = tf.transpose(image, (1, 0, 2))
    if tf.reduce_any(orientation == tf.constant([2, 3, 6, 7])):
        image = tf.reverse(image, [1])
    if tf.reduce_any(orientation == tf.constant([3, 4, 7, 8])):
        image = tf.reverse(image, [0])
    return tf.ensure_shape(image, (None, None, 3))


@keras.saving.register_keras_serializable("mmret_tf")
def standardize_text(text: tf.Tensor) -> tf.Tensor:
    """Bring captions of any script to words parted by single spaces. Section 3.1(1).

    NFKC, lower case, punctuation to spaces (an apostrophe vanishes: "dog's" is "dogs"), and a
    space around every Han character, so that each is a token of its own (汉字按字切分).

    Args:
        text: strings of any shape.

    Returns:
        strings of the same shape.

    >>> print(standardize_text(["A ＲＥＤ dog's ball!", "红色的圆"]).numpy()[1].decode())
    红 色 的 圆
    """
    text = tf.convert_to_tensor(text, tf.string)
    flat = nfkc(tf.reshape(text, [-1]))
    flat = tf.strings.lower(flat, encoding="utf-8")
    flat = tf.strings.regex_replace(flat, r"['’`]", "")
    flat = tf.strings.regex_replace(flat, r"[\pP\pS\pZ\pC]", " ")
    flat = tf.strings.regex_replace(flat, r"(\p{Han})", r" \1 ")
    flat = tf.strings.strip(tf.strings.regex_replace(flat, " +", " "))
    return tf.reshape(flat, tf.shape(text))


@keras.saving.register_keras_serializable("mmret_tf")
class TextPreprocessor(keras.layers.TextVectorization):
    """Captions to token ids: Keras' TextVectorization over `standardize_text`. Section 3.1(1).

    Id 0 is padding and 1 is a word outside the vocabulary. `adapt` learns the vocabulary (from the
    training split alone); it is saved inside the `.keras` file of the model that holds this layer.

    Args:
        max_tokens: the most words that the vocabulary may have, with the two special ids.
        sequence_length: tokens a caption; longer ones are cut, shorter ones padded with 0.

    Call: strings `[n]` -> int64 `[n, sequence_length]`.

    >>> text = TextPreprocessor(max_tokens=100, sequence_length=5)
    >>> text.adapt(["red red red", "圆圆"])
    >>> text(["RED, red 圆", "green"]).numpy().tolist()  # red is 2, 圆 is 3
    [[2, 2, 3, 0, 0], [1, 0, 0, 0, 0]]
    """

    def __init__(self, max_tokens: int = 8000, sequence_length: int = 32, **kwargs):
        super().__init__(
            max_tokens=max_tokens,
            standardize=standardize_text,
            output_sequence_length=sequence_length,
            **kwargs,
        )
        self.sequence_length = sequence_length

    def adapt(self, captions: Iterable[str] | tf.data.Dataset, **kwargs) -> None:
        """Learn the vocabulary: the most frequent words, up to `max_tokens`.

        Args:
            captions: strings, or a `tf.data.Dataset` of strings; of the training split alone.

        Raises:
            ValueError: there are no captions, or they are no strings.
        """
        if not isinstance(captions, tf.data.Dataset):
            is_one = isinstance(captions, str)  # each letter of which is a string, too
            captions = list(captions)
            if is_one or not captions or not all(isinstance(each, str) for each in captions):
                raise ValueError("adapt takes a non-empty list of captions (strings)")
            captions = tf.data.Dataset.from_tensor_slices(captions).batch(1024)
        super().adapt(captions, **kwargs)

    def compute_output_shape(self, input_shape: tuple | None) -> tuple:
        """`summary` asks with `None` before any call."""
        return (input_shape[0] if input_shape else None, self.sequence_length)

    def get_config(self) -> dict:
        return {
            "name": self.name,
            "max_tokens": self._max_tokens,
            "sequence_length": self.sequence_length,
        }

    @classmethod
    def from_config(cls, config: dict) -> TextPreprocessor:
        return cls(**config)
