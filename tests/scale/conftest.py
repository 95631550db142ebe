"""A model that is worth compressing, and pictures to compress it with."""

import numpy as np
import pytest
from conftest import CAPTIONS, make_text, make_wide_model
from PIL import Image

from mmret_tf.data.pairs import Pairs
from mmret_tf.scale import bfloat16_encoder


@pytest.fixture(scope="session")
def wide_model():
    """Not to be changed."""
    return make_wide_model(make_text())


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """40 pictures with a caption each."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{number:02}.png" for number in range(40)]
    for path in paths:
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC).save(path)
    captions = [[CAPTIONS[number % 4]] for number in range(40)]
    sources = {"image": [[path] for path in paths], "text": captions}
    return Pairs([path.stem for path in paths], sources)


@pytest.fixture(scope="session")
def exact(wide_model, photos):
    """The embeddings of the pictures in float32."""
    return wide_model.encode_images(photos.image_paths)


@pytest.fixture(scope="session")
def faster(wide_model):
    """The encoder in bfloat16."""
    return bfloat16_encoder(wide_model)
