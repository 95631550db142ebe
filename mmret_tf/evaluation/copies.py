"""Copies across splits (划分间的重复图片): pictures of one split that another split has as well.

A model that was trained on pictures of the test looks better than it is. A copy has the same
content, by its digest; or it was encoded again, at another quality or size. Such a near copy has a
similar difference hash (dHash) and similar colours. Simple drawings that differ in one small shape
count as near copies, too. Cropped and mirrored copies are not found.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmret_tf.data.splits import SPLITS

# A picture is compared by the mean colours of 8 rows of 9 cells.
ROWS, COLUMNS = 8, 9

# Side of the thumbnail, in pixels: a multiple of both, so that all cells have whole pixels.
SIDE = ROWS * COLUMNS

# Weights of red, green and blue in grey (ITU-R BT.601).
GREY = np.array([0.299, 0.587, 0.114], np.float32)

# A step between neighbouring cells that is no larger than this, in levels, is noise of the encoder.
NOISE = 2

# Limits for a near copy: bits of the hash that differ, of 64, and the root of the mean squared
# difference of the colours, in levels. Measured on 7,000 photographs of Flickr8k, 224 pixels wide:
# 4,198 of 4,200 that were encoded again (JPEG quality 75, 50 or 30; 1, 1/2 or 1/4 of the size) are
# within both. Of 24.5 million pairs of photographs, 71 are within the first, and 1 within both: a
# real copy. The second limit is for drawings: of 2 million pairs of different scenes, 283,528 are
# within the first, and 4 within both.
MAX_DISTANCE = 8
MAX_COLOUR_DIFFERENCE = 6

# A picture whose cells differ less than this in every channel, in levels, is flat. The flattest of
# those photographs reaches 42, the flattest scene 57.
FLAT_RANGE = 24

# Number of pairs compared at once: 1 MiB of hashes, and at most 110 MiB of colours.
BLOCK_PAIRS = 2**17


@dataclass(frozen=True)
class Looks:
    """What pictures are compared by, `[n]` each.

    Attributes:
        digests: Digest of each picture's content.
        cells: Mean colours, uint8 `[n, 8, 9, 3]`, each by `mean_colours`.
    """

    digests: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.digests)

    def subset(self, rows: np.ndarray) -> "Looks":
        """The pictures of these rows.

        Args:
            rows: Row numbers, or a boolean for each row.
        """
        return Looks(self.digests[rows], self.cells[rows])

    @property
    def are_flat(self) -> np.ndarray:
        """Whether a picture has nearly one colour, bool `[n]`. Flat pictures have no look of their
        own, so they are copies only if their content is the same."""
        return np.ptp(self.cells, axis=(1, 2)).max(axis=-1) < FLAT_RANGE


def mean_colours(thumbnail: Image.Image) -> np.ndarray:
    """Mean colours of the cells of a thumbnail.

    Args:
        thumbnail: RGB, `SIDE` pixels wide and high.

    Returns:
        uint8 `[8, 9, 3]`.

    >>> mean_colours(Image.new("RGB", (SIDE, SIDE), (10, 20, 30)))[7, 8].tolist()
    [10, 20, 30]
    """
    pixels = np.asarray(thumbnail, np.float32)
    cells = pixels.reshape(ROWS, SIDE // ROWS, COLUMNS, SIDE // COLUMNS, 3).mean(axis=(1, 3))
    return np.rint(cells).astype(np.uint8)


def difference_hashes(cells: np.ndarray) -> np.ndarray:
    """Difference hashes: a bit says whether a cell is darker than its right neighbour.

    Args:
        cells: uint8 `[n, 8, 9, 3]`.

    Returns:
        uint64 `[n]`.

    >>> brighter = np.broadcast_to(10 * np.arange(9, dtype=np.uint8)[:, None], (1, 8, 9, 3))
    >>> difference_hashes(brighter) == 2**64 - 1
    array([ True])
    >>> difference_hashes(255 - brighter)
    array([0], dtype=uint64)
    """
    steps = np.diff(cells @ GREY, axis=2)
    bits = (steps > NOISE).reshape(len(cells), ROWS * (COLUMNS - 1))
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def close_pairs(
    first: np.ndarray, second: np.ndarray, max_distance: int = MAX_DISTANCE
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of hashes that differ in few bits, found in blocks: memory does not grow with n * m.

    Args:
        first: uint64 `[n]`.
        second: uint64 `[m]`.
        max_distance: Largest number of bits that may differ.

    Yields:
        Rows of `first`, rows of `second`, and the distances of these pairs.

    >>> hashes = np.array([0b1111, 0b0000], np.uint64), np.array([0b0111], np.uint64)
    >>> [[each.tolist() for each in block] for block in close_pairs(*hashes, max_distance=1)]
    [[[0], [0], [1]]]
    """
    height = max(1, BLOCK_PAIRS // max(1, len(second)))
    for start in range(0, len(first), height):
        distances = np.bitwise_count(first[start : start + height, None] ^ second)
        rows, others = np.nonzero(distances <= max_distance)
        if len(rows):
            yield rows + start, others, distances[rows, others].astype(np.int64)


def nearest_copies(queries: Looks, gallery: Looks) -> tuple[np.ndarray, np.ndarray]:
    """For each picture, the nearest of its copies among others.

    Args:
        queries: n pictures.
        gallery: m pictures among which copies are looked for.

    Returns:
        int64 `[n]` each: the row in the gallery, or -1 for a picture without a copy; and the
        distance in bits, 0 for the same content.
    """
    rows, distances = np.full(len(queries), -1), np.zeros(len(queries), np.int64)
    first_with = dict(zip(gallery.digests[::-1], range(len(gallery) - 1, -1, -1), strict=True))
    for row, digest in enumerate(queries.digests):
        rows[row] = first_with.get(digest, -1)

    asked = np.flatnonzero((rows < 0) & ~queries.are_flat)
    known = np.flatnonzero(~gallery.are_flat)
    hashes = difference_hashes(queries.cells[asked]), difference_hashes(gallery.cells[known])
    # The nearest of all, and the first of those: the smallest of distance * m + row.
    m = len(gallery)
    none = (MAX_DISTANCE + 1) * m
    best = np.full(len(queries), none)
    for some, others, bits in close_pairs(*hashes):
        some, others = asked[some], known[others]
        differences = queries.cells[some].astype(np.float32) - gallery.cells[others]
        squares = np.einsum("nijk,nijk->n", differences, differences)
        is_copy = squares <= ROWS * COLUMNS * 3 * MAX_COLOUR_DIFFERENCE**2
        np.minimum.at(best, some[is_copy], (bits * m + others)[is_copy])
    found = best < none
    rows[found], distances[found] = best[found] % m, best[found] // m
    return rows, distances


def copies_across_splits(looks: Looks, ids: Sequence[str], splits: Sequence[str]) -> list[dict]:
    """The pictures of each split that an earlier split has as well, from train to dev and test.

    Args:
        looks: Of n pictures.
        ids: Name of the item of each picture.
        splits: Split of each picture. Pictures without one ("") are not compared.

    Returns:
        For each picture and each other split that has a copy of it, the nearest one: {"split",
        "id", "other_split", "other_id", "distance" (0 to 64 bits), "is_exact" (the same content)}.

    >>> cells = np.zeros((3, 8, 9, 3), np.uint8)
    >>> looks = Looks(np.array(["sha-1", "sha-2", "sha-1"]), cells)
    >>> [pair] = copies_across_splits(looks, ["a", "b", "c"], ["train", "train", "test"])
    >>> pair["split"], pair["id"], pair["other_split"], pair["other_id"], pair["is_exact"]
    ('test', 'c', 'train', 'a', True)
    """
    of_split = np.array(splits, object)
    names = sorted({*splits} - {""}, key=lambda name: ((*SPLITS, name).index(name), name))
    pairs = []
    for other, name in itertools.combinations(names, 2):
        earlier, later = np.flatnonzero(of_split == other), np.flatnonzero(of_split == name)
        rows, distances = nearest_copies(looks.subset(later), looks.subset(earlier))
        for place in np.flatnonzero(rows >= 0):
            row, other_row = later[place], earlier[rows[place]]
            pairs.append(
                {
                    "split": name,
                    "id": ids[row],
                    "other_split": other,
                    "other_id": ids[other_row],
                    "distance": int(distances[place]),
                    "is_exact": bool(looks.digests[row] == looks.digests[other_row]),
                }
            )
    return pairs
