"""Occlusion (遮挡): what a tower looks at, by the drop of a cosine when a part is covered.

    drop = cos(whole, target) - cos(without the part, target)

A positive drop means that the part speaks for the target, a negative one that it speaks against
it. Any encoder will do, since nothing inside it is read. `plots.occlusion_plots` draws the drops.
After arXiv 1311.2901.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mmret_tf._checks import checked_count, checked_rows

GREY = 128  # level of the square
SIDES, STEPS = 4, 4  # squares along the shorter side of a picture, steps along a square


def occlusion_map(
    encode: Callable[[list[np.ndarray]], np.ndarray],
    picture: npt.ArrayLike,
    target: npt.ArrayLike,
    window: int | None = None,
    step: int | None = None,
) -> np.ndarray:
    """Slide a grey square over a picture, and measure how much its cosine drops. Section 2.2.

    Args:
        encode: Function from n pictures to embeddings `[n, dim]`: `model.encode_images`.
        picture: `[height, width]` or `[height, width, 3]`, levels 0 to 255, as `mm.data.load_image`
            returns it.
        target: `[dim]`, the embedding of a caption.
        window: Side of the square in pixels; by default a quarter of the shorter side.
        step: Pixels from one square to the next; by default a quarter of the square.

    Returns:
        `[height, width]`: for each pixel, the mean drop of the squares that cover it.

    Raises:
        ValueError: `picture` is not an array of such a shape, the square does not fit into it, or
            the embeddings and `target` differ in width.

    >>> def encode(pictures):  # the embedding depends on the left half alone
    ...     return np.stack([[each[:, :4].mean(), 100] for each in pictures])
    >>> drops = occlusion_map(encode, np.full((8, 8), 255), [1, 0])
    >>> bool(drops[:, :4].min() > 0), float(drops[:, 6:].max())
    (True, 0.0)
    """
    picture = np.asarray(picture)
    if picture.ndim not in (2, 3) or 0 in picture.shape:
        got = f"shape {picture.shape}" if picture.ndim else f"{picture.item()!r:.80}"
        raise ValueError(f"picture must be an array [height, width, 3]; got {got}: load it first")
    height, width = picture.shape[:2]
    default = max(1, min(height, width) // SIDES)
    window = checked_count(default if window is None else window, "window")
    step = checked_count(max(1, window // STEPS) if step is None else step, "step")
    if window > min(height, width):
        raise ValueError(f"window must fit into the picture of {height} x {width}; got {window}")
    # The last square of a row or column ends where the picture ends.
    rows, columns = (
        [*range(0, length - window, step), length - window] for length in (height, width)
    )
    squares = [np.s_[row : row + window, left : left + window] for row in rows for left in columns]
    covered = [picture]
    for square in squares:
        covered.append(picture.copy())
        covered[-1][square] = GREY
    sums, counts = np.zeros((height, width)), np.zeros((height, width))
    for square, drop in zip(squares, _drops(encode(covered), target), strict=True):
        sums[square] += drop
        counts[square] += 1
    return sums / np.maximum(counts, 1)


def word_drops(
    encode: Callable[[list[str]], np.ndarray], words: Sequence[str], target: npt.ArrayLike
) -> np.ndarray:
    """Leave out each word of a caption, and measure how much its cosine drops. Section 2.2.

    Args:
        encode: Function from n texts to embeddings `[n, dim]`: `model.encode_texts`.
        words: `"a red circle".split()`, or Chinese words such as `["红色", "的", "圆"]`. A space is
            put between them.
        target: `[dim]`, the embedding of a picture.

    Returns:
        `[n_words]`: the drop for each word.

    Raises:
        ValueError: `words` is a string or empty, or the embeddings and `target` differ in width.

    >>> def encode(texts):  # counts two words
    ...     return np.array([[each.count("red"), each.count("circle")] for each in texts])
    >>> word_drops(encode, ["a", "red", "circle"], [1, 0]).round(1)
    array([ 0. ,  0.7, -0.3])
    """
    if isinstance(words, str) or not len(words):
        raise ValueError(f"words must be a list of at least one word; got {words!r:.80}")
    texts = [" ".join(words)]
    texts += [" ".join([*words[:place], *words[place + 1 :]]) for place in range(len(words))]
    return _drops(encode(texts), target)


def _drops(embeddings: npt.ArrayLike, target: npt.ArrayLike) -> np.ndarray:
    """Cosine of the first row with the target, minus that of each other row."""
    rows = checked_rows(embeddings, "embeddings", "cosine")
    target = checked_rows(np.reshape(target, (1, -1)), "target", "cosine")
    if rows.shape[1] != target.shape[1]:
        raise ValueError(f"target must have width {rows.shape[1]}; got {target.shape[1]}")
    cosines = rows @ target[0]
    return cosines[0] - cosines[1:]
