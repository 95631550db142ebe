"""The region cache: a re-ranker reads the same from it, and it is computed once."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_model

import mmret_tf as mm
from mmret_tf.data.collection import Collection
from mmret_tf.data.modalities import get_modality
from mmret_tf.training.caches import views
from mmret_tf.training.caches.regions import RegionCache


@pytest.fixture(scope="module")
def reranker():
    return mm.Reranker(make_model(), dim=8)


@pytest.fixture(scope="module")
def items(picture_files):
    """Two pictures of one item, which is twice in the gallery, and a text alone."""
    images = [picture_files[:2], picture_files[:2], []]
    return Collection(["a", "b", "c"], {"image": images, "text": [[], [], CAPTIONS[:1]]})


def sources_of(items):
    return [source for each in items.sources["image"] for source in each]


def test_a_cached_reranker_reads_the_same(reranker, items, tmp_path):
    tower = reranker.encoder.towers["image"]
    cache = RegionCache(tower, sources_of(items), tmp_path)
    cached, digests = cache.reranker(reranker), sources_of(cache.cached(items))
    expected = reranker.encode("image", sources_of(items))
    assert np.abs(cached.encode("image", digests) - expected).max() < 2e-3  # of half precision
    assert np.array_equal(
        cached.encode("text", CAPTIONS[:1]), reranker.encode("text", CAPTIONS[:1])
    )
    assert (cached.fingerprint, cached.recipe) == (reranker.fingerprint, reranker.recipe)
    assert cached.weight is reranker.weight
    trained = {id(each) for each in cached.trainable_variables}
    assert trained == {id(each) for each in reranker.trainable_variables}
    with pytest.raises(ValueError, match="cached regions have no embedding"):
        cached.encoder.encode("image", digests)


def test_regions_are_computed_once_for_each_content(reranker, items, tmp_path, monkeypatch):
    seen, encode = [], views._ViewEncoder.encode

    def noted(self, modality, sources, batch_size=None):
        seen.extend(sources)
        return encode(self, modality, sources, batch_size)

    monkeypatch.setattr(views._ViewEncoder, "encode", noted)
    tower = reranker.encoder.towers["image"]
    for _ in range(2):
        RegionCache(tower, sources_of(items), tmp_path)
    assert len(seen) == 2
    tower.set_regions(pool=2)
    try:
        fewer = RegionCache(tower, sources_of(items), tmp_path)
    finally:
        tower.set_regions()
    assert len(seen) == 4 and fewer.shape[0] < reranker.shapes["image"][0]


def test_training_draws_the_regions_of_views(reranker, tmp_path):
    tower = reranker.encoder.towers["image"]
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    used = get_modality("image").sources([noise])
    cache = RegionCache(tower, used, tmp_path, used, views=3)
    (digest,) = [np.array([source.identity.encode()]) for source in used]
    plain, mirrored, crop = (cache.look_up(digest, np.array([view]))[0] for view in range(3))
    pixels = tower.preprocess(tf.constant([used[0].read()]))
    for found, picture in ((plain, pixels), (mirrored, pixels[:, :, ::-1])):
        expected = tower.padded_sequence(picture)[0]
        assert found == pytest.approx(np.array(expected), rel=2e-3, abs=2e-3)
    assert np.abs(crop - plain).max() > 1e-2
    cached = cache.reranker(reranker).encoder.towers["image"]
    seeds = tf.constant([[0, 0], [1, 0]], tf.int64)
    drawn = cached.augment(tf.repeat(digest, 2), seeds, tf.constant([False, False]))
    assert np.array_equal(drawn, [plain, crop])


def test_a_tower_that_is_trained_is_refused(items, tmp_path):
    tower = make_model(trainable=True).image_tower
    with pytest.raises(ValueError, match="change in training: freeze its backbone"):
        RegionCache(tower, sources_of(items), tmp_path)
