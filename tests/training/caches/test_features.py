"""The feature cache: the same training without the backbone, and never a stale feature."""

import functools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_backbone, make_model
from keras import ops
from PIL import Image

from mmret_tf.data.collection import Collection
from mmret_tf.data.sources import FileSource
from mmret_tf.models.dual_encoder import load_model
from mmret_tf.models.encoder import VariantEncoder
from mmret_tf.models.towers.head import Head
from mmret_tf.models.towers.image import ImageTower, image_tower
from mmret_tf.ranking.storage import chunks
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.similarity.losses import ContrastiveCosine
from mmret_tf.training.caches import views as view_cache
from mmret_tf.training.caches.features import CachedTower, FeatureCache


@pytest.fixture(scope="module")
def pairs(picture_files):
    ids = [path.stem for path in picture_files]
    sources = {"image": [[path] for path in picture_files], "text": [[each] for each in CAPTIONS]}
    return Collection(ids, sources).pairs()


@pytest.fixture(scope="module")
def backbone():
    """A frozen backbone, so that two models can share its weights."""
    built = make_backbone()
    built.trainable = False
    return built


def fit(encoder, pairs):
    # With Adam, a gradient that is 0 but for rounding would move a weight as far as any other.
    encoder.compile(keras.optimizers.SGD(0.5), ContrastiveCosine(), run_eagerly=True)
    dataset = pairs.as_dataset(encoder, batch_size=2, training=True, seed=1)
    encoder.fit(dataset, verbose=0)


@pytest.fixture(scope="module")
def trained(backbone, pairs, tmp_path_factory):
    """A model whose heads were trained on cached features: the model, its heads and the cache."""
    model = make_model(backbone=backbone, trainable=False)
    folder = tmp_path_factory.mktemp("cache")
    cache = FeatureCache(model.image_tower, pairs.first_sources, folder / "features")
    heads = cache.encoder(model)
    fit(heads, cache.cached(pairs))
    return model, heads, cache


def test_heads_learn_what_they_learn_behind_the_backbone(trained, backbone, pairs):
    model, heads, _ = trained
    started, slow = (make_model(backbone=backbone, trainable=False) for _ in range(2))
    fit(slow, pairs)
    for fast, behind in zip(model.get_weights(), slow.get_weights(), strict=True):
        np.testing.assert_allclose(fast, behind, atol=1e-5)
    moved = [
        variable.path
        for variable, before in zip(model.variables, started.variables, strict=True)
        if not np.allclose(variable, before, atol=1e-4)
    ]
    assert {"projection_0/kernel", "normalization/moving_mean", "words/embeddings"} <= set(moved)
    assert heads.temperature is model.temperature


def test_the_full_model_is_saved_with_the_trained_head(trained, tmp_path):
    model, _, _ = trained
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert isinstance(loaded.image_tower, ImageTower) and loaded.fingerprint == model.fingerprint


def test_a_gallery_of_several_images_and_of_text_alone_is_embedded(trained, pairs, tmp_path):
    model, heads, cache = trained
    images = [[*pairs.image_paths[:2]], [pairs.image_paths[2]], []]
    texts = [["a red circle"], [], ["红色的圆", "蓝色的方块"]]
    gallery = Collection(list("abc"), {"image": images, "text": texts}, [{}, {"n": 1}, {}])
    encoder = VariantEncoder(model, heads.towers, "float32")
    store = EmbeddingStore.export(encoder, cache.cached(gallery), tmp_path / "embeddings")
    np.testing.assert_allclose(store.embeddings, model.encode_items(gallery.sources), atol=1e-5)
    assert store.items == gallery.records() and store.fingerprint == model.fingerprint
    text_only = gallery.subset([2])
    assert cache.cached(text_only).sources["image"] == [[]]


@pytest.fixture
def pictures(tmp_path):
    """Sources: noise, a plain picture, and the noise once more under another name."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    paths = [tmp_path / f"{name}.png" for name in ("noise", "plain", "again")]
    for path, pixels in zip(paths, (noise, np.full((20, 30, 3), 99, np.uint8), noise), strict=True):
        Image.fromarray(pixels).save(path)
    return [FileSource(path) for path in paths]


def features_of(cache, sources, view=0):
    digests = np.array([source.identity.encode() for source in sources])
    return cache.look_up(digests, np.full(len(sources), view))


@pytest.fixture
def computed(monkeypatch):
    """Names of the sources whose features are computed, in order."""
    names = []
    encode = view_cache._ViewEncoder.encode

    def noted(self, modality, sources, batch_size=None):
        names.extend(source.path.stem for source in sources)
        return encode(self, modality, sources, batch_size)

    monkeypatch.setattr(view_cache._ViewEncoder, "encode", noted)
    return names


def make_tower(backbone, **settings):
    settings = {"image_size": 16, "embedding_dim": 4, "trainable": False, **settings}
    return image_tower(backbone, **settings)


def test_views_with_even_numbers_are_unmirrored_and_odd_ones_are_mirrored(
    backbone, pictures, tmp_path
):
    tower = make_tower(backbone, min_crop=1.0)  # which keeps the whole of a square
    cache = FeatureCache(tower, pictures, tmp_path / "features", pictures, views=3)
    noise = np.asarray(Image.open(pictures[0].path))
    plain, mirrored = tower.features(np.stack([noise, noise[:, ::-1]])).numpy()
    assert not np.allclose(plain, mirrored)
    for view, expected in enumerate([plain, mirrored, plain]):
        found = features_of(cache, pictures, view)
        np.testing.assert_allclose(found[0], expected, atol=1e-4)
        assert np.array_equal(found[0], found[2])


def test_views_after_the_first_two_are_crops_that_follow_from_the_content(
    backbone, pictures, tmp_path
):
    tower = make_tower(backbone, min_crop=0.5)
    noise = np.asarray(Image.open(pictures[0].path))
    plain, mirrored = tower.features(np.stack([noise, noise[:, ::-1]])).numpy()

    def all_views(name):
        cache = FeatureCache(tower, pictures, tmp_path / name, pictures, views=4)
        return np.stack([features_of(cache, pictures, view) for view in range(4)], axis=1)

    views = all_views("one")
    assert np.allclose(views[0, :2], [plain, mirrored], atol=1e-4)
    for whole, crop in ((plain, views[0, 2]), (mirrored, views[0, 3])):
        assert not np.allclose(crop, whole, atol=1e-3)
    assert np.allclose(views[1], views[1, :1], atol=1e-4)  # of one colour
    assert np.array_equal(views[0], views[2]) and np.array_equal(views, all_views("other"))


class Side(keras.layers.Layer):
    """The side of pictures, in pixels, as their feature."""

    def call(self, images):
        batch, side = ops.shape(images)[:2]
        return ops.ones((batch, 1)) * ops.cast(side, "float32")


def test_views_cycle_through_the_scales(pictures, tmp_path):
    images = keras.Input((None, None, 3))
    tower = ImageTower(keras.Model(images, Side()(images)), Head(1, 4), 16, scales=(16, 20, 30))
    cache = FeatureCache(tower, pictures, tmp_path / "features", pictures, views=7)
    found = [features_of(cache, pictures, view)[0, 0] for view in range(7)]
    assert found == [22, 16, 20, 20, 30, 30, 16]


@pytest.mark.parametrize(
    ("views", "unmirrored", "mirrored"),
    [(1, {0}, {0}), (2, {0}, {1}), (3, {0, 2}, {0, 1}), (4, {0, 2}, {1, 3})],
)
def test_training_draws_views_with_the_side_that_the_caption_allows(
    shared_model, views, unmirrored, mirrored
):
    cache = SimpleNamespace(tower=shared_model.image_tower, views=views, shape=(1,))
    cache.look_up = lambda digests, numbers: numbers[:, None].astype(np.float32)
    tower = CachedTower(cache)
    digests = tf.fill([50], "digest")
    seeds = tf.constant(np.random.default_rng(0).integers(0, 2**60, (50, 2)))
    for is_mirrored, expected in ((False, unmirrored), (True, mirrored)):
        drawn = tower.augment(digests, seeds, tf.fill([50], is_mirrored))
        assert set(drawn.numpy()[:, 0]) == expected
    assert set(tower.preprocess(digests).numpy()[:, 0]) == {0}


def test_features_are_computed_once_and_known_by_content(backbone, pictures, tmp_path, computed):
    make = functools.partial(FeatureCache, directory=tmp_path / "features")
    first = features_of(make(make_tower(backbone), pictures), pictures)
    assert computed == ["again", "plain"]  # the noise once, under its last name
    moved = [
        FileSource(each.path.rename(tmp_path / f"moved {each.path.name}")) for each in pictures
    ]
    other = make_tower(backbone, embedding_dim=6, members=2, dropout=0.5)  # another head
    assert np.array_equal(features_of(make(other, moved), moved), first)
    assert len(computed) == 2
    Image.new("RGB", (9, 9), "yellow").save(moved[1].path)  # under the old name
    changed = [FileSource(each.path) for each in moved]
    cache = make(make_tower(backbone), changed)
    assert computed[2:] == ["moved again", "moved plain"]
    expected = make_tower(backbone).features(np.full((1, 16, 16, 3), (255, 255, 0), np.uint8))
    np.testing.assert_allclose(features_of(cache, changed[1:2]), expected, atol=1e-4)


def test_everything_that_decides_the_features_decides_the_name_of_the_cache(backbone):
    def fingerprint(network=backbone, views=(0,), **settings):
        tower = make_tower(network, **settings)
        cache = SimpleNamespace(tower=tower, compute=tower.view_features, shape=(1,), said=[])
        return view_cache._ViewEncoder(cache, list(views)).fingerprint

    different = [
        fingerprint(),
        fingerprint(make_backbone()),  # other weights
        fingerprint(views=(1,)),
        fingerprint(views=(1, 2)),
        fingerprint(min_crop=0.5),
        fingerprint(image_size=20),
        fingerprint(scales=(16, 20)),
        fingerprint(feature_layers=("convolution",)),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(embedding_dim=8, dropout=0.5) == different[0]


def test_a_killed_computation_resumes(backbone, pictures, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1)
    encode = view_cache._ViewEncoder.encode

    def die_at_the_second(self, *arguments):
        if computed:
            raise KeyboardInterrupt
        return encode(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(view_cache._ViewEncoder, "encode", die_at_the_second)
        FeatureCache(make_tower(backbone), pictures, tmp_path / "features")
    assert computed == ["again"]
    cache = FeatureCache(make_tower(backbone), pictures, tmp_path / "features")
    assert computed == ["again", "plain"]
    assert features_of(cache, pictures).shape == (3, 8)
    assert [path.name for path in tmp_path.glob("features/*")] == ["plain"]


def test_a_cache_is_refused_for_a_backbone_that_trains_or_a_source_without_content(
    backbone, pictures, tmp_path
):
    with pytest.raises(ValueError, match="image_tower change in training: freeze its backbone"):
        FeatureCache(make_tower(make_backbone(), trainable=True), pictures, tmp_path / "features")
    pictures[1].path.write_bytes(b"rubbish")
    damaged = [FileSource(each.path) for each in pictures]
    with pytest.raises(ValueError, match=r"plain\.png: not an image"):
        FeatureCache(make_tower(backbone), damaged, tmp_path / "features")
    pictures[1].path.unlink()
    with pytest.raises(ValueError, match=r"plain\.png: No such file"):
        FeatureCache(make_tower(backbone), pictures, tmp_path / "features")
