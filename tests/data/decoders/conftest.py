"""Pictures for the tests of the decoders: one that differs in all corners, encoded as asked."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture():
    """A function that draws a smooth picture; red grows to the right and green to the bottom."""

    def draw(height=30, width=50):
        y, x = np.mgrid[:height, :width] / [[[height]], [[width]]] * 255
        return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))

    return draw


@pytest.fixture(scope="session")
def encoded():
    """A function that encodes a Pillow image with Pillow."""

    def encode(image, kind, **options):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    return encode
