"""Small galleries of vectors, and what is measured on them."""

import numpy as np
import pytest

from mmret_tf.ranking import BruteForceIndex, ScannConfig, ScannIndex

BOTH = pytest.mark.parametrize("kind", [BruteForceIndex, ScannIndex])
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])

# It makes ScannIndex treat a small gallery as it would a large one.
PARTITIONED = ScannConfig(leaves=50)


def clustered(n, dim=32, seed=0, spread=0.5):
    """Points around 50 centres, float32 `[n, dim]`."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, dim))
    points = centres[random.integers(0, 50, n)] + spread * random.standard_normal((n, dim))
    return points.astype(np.float32)


def found(index, query, k=10, **options):
    """The ids that an index finds for one query."""
    return index.search(query, k, **options)[0][0].tolist()


def recall(rows, right):
    """Share of the right ids that were found."""
    return np.mean([len({*a} & {*b}) / len(b) for a, b in zip(rows, right, strict=True)])
