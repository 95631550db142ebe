"""The image tower: preprocessing, augmentation, scales, regions, frozen backbones, round trips."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_backbone
from keras import layers

from mmret_tf.data.decoders.image import load_image
from mmret_tf.data.decoders.pictures import encode_png
from mmret_tf.models import Head, ImageTower, image_tower, thaw
from mmret_tf.models.dual_encoder import load_as

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tower():
    """32 pixels; not to be changed."""
    return image_tower(make_backbone(), image_size=32, embedding_dim=4)


@pytest.fixture(scope="module")
def files():
    """PNG files of different sizes."""
    random = np.random.default_rng(1)
    sizes = [(32, 32), (40, 60), (64, 50)]
    return [encode_png(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def shows_its_input(size=8, **settings):
    """A tower whose features are the levels of the picture."""
    images = keras.Input((None, None, 3))
    backbone = keras.Model(images, layers.GlobalAveragePooling2D()(images))
    return ImageTower(backbone, Head(3, 4), image_size=size, **settings)


def test_pictures_are_decoded_and_cropped_as_by_load_image(tower, files):
    expected = np.stack([load_image(each, 32) for each in files])
    images = tower.preprocess(tf.constant(files))
    assert images.dtype == tf.uint8 and np.array_equal(images, expected)
    assert np.array_equal(tower.compiled_preprocess(tf.constant(files)), expected)


def test_augmentation_follows_from_its_seeds(files):
    tower = shows_its_input(16, min_crop=0.5)
    sources, still = tf.constant(files[1:2] * 8), tf.fill([8], False)
    seeds = tf.constant(np.arange(16).reshape(8, 2))
    augment = tf.function(tower.augment)
    first = augment(sources, seeds, still).numpy()
    assert first.shape == (8, 16, 16, 3)
    assert np.array_equal(augment(sources, seeds, still), first)
    assert len({each.tobytes() for each in first}) == 8  # every seed crops differently
    assert np.array_equal(augment(sources, seeds, ~still), first[:, :, ::-1])


def test_with_min_crop_1_a_square_picture_is_never_cropped(files):
    tower, seeds = shows_its_input(32, min_crop=1), tf.constant([[1, 2]])
    sources = tf.constant(files[:1])
    expected = tower.preprocess(sources)
    assert np.array_equal(tower.augment(sources, seeds, tf.constant([False])), expected)


def test_a_backbone_may_see_each_picture_at_several_scales(tmp_path):
    backbone = make_backbone()
    tower = image_tower(backbone, image_size=32, embedding_dim=4, scales=[32, 48])
    larger = tf.image.resize(PICTURES, (48, 48))
    expected = (backbone(PICTURES) + backbone(larger)) / 2
    assert np.allclose(tower.features(PICTURES), expected, atol=1e-5)
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(ImageTower, tmp_path / "tower.keras")
    assert np.array_equal(loaded(PICTURES), tower(PICTURES))
    assert loaded.settings == tower.settings == [32, None, [32, 48], []]


def test_features_may_be_averaged_over_crops_of_the_corners(files, tmp_path):
    # Levels 0 to 7 by columns: the left crops of half the side show 0 to 3, the right ones 4 to 7;
    # made as large as the picture, they keep their means.
    columns = np.tile(np.arange(8, dtype=np.uint8)[None, None, :, None], (1, 8, 1, 3))
    tower = shows_its_input(8, corner_crops=[0.5])
    whole, left, right = 3.5, 1.5, 5.5
    assert np.allclose(tower.features(columns), (whole + 2 * left + 2 * right) / 5)
    bright = np.zeros_like(columns)
    bright[:, :6, :6] = 100  # one corner, with crops of 0.75
    own, side, opposite = 100, 100 * 4 / 6, 100 * 4 / 6 * 4 / 6
    expected = (100 * 36 / 64 + own + 2 * side + opposite) / 5
    tower = shows_its_input(8, corner_crops=[0.75])
    assert np.allclose(tower.features(bright), expected, atol=1)  # resizing blurs the edges
    # Training has crops of its own, and only the plain view is as in a search.
    plain = shows_its_input(8)
    assert np.allclose(tower.features(bright, training=True), plain.features(bright))
    sources, seeds = tf.constant(files[:2]), tf.zeros((2, 2), tf.int64)
    views = [tower.view_features(sources, seeds, view) for view in (0, 2)]
    assert np.array_equal(views[0], tower.features(tower.preprocess(sources)))
    assert np.array_equal(views[1], plain.view_features(sources, seeds, 2))
    assert tower.settings != plain.settings  # it is another embedding
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(ImageTower, tmp_path / "tower.keras")
    assert np.array_equal(loaded(bright), tower(bright))


def test_views_cycle_through_the_scales_and_every_other_one_is_mirrored(files, monkeypatch):
    tower, sources = shows_its_input(8, scales=[8, 12]), tf.constant(files[:2])
    calls = []

    def augment(contents, seeds, mirror):
        calls.append(mirror.numpy().tolist())
        return tower.preprocess(contents)

    monkeypatch.setattr(tower, "augment", augment)
    seeds, images = tf.zeros((2, 2), tf.int64), tower.preprocess(sources)
    both = tower.features(images)
    assert np.array_equal(tower.view_features(sources, seeds, 0), both)
    at_scale = {side: shows_its_input(8, scales=[side]) for side in (8, 12)}
    mirrored = at_scale[8].features(images[:, :, ::-1])
    assert np.array_equal(tower.view_features(sources, seeds, 1), mirrored)
    for view, scale in [(2, 12), (3, 12), (4, 8)]:
        expected = at_scale[scale].features(images)
        assert np.array_equal(tower.view_features(sources, seeds, view), expected)
    assert calls == [[False, False], [True, True], [False, False]]


def test_the_sequence_is_the_last_feature_map(tower):
    convolution = tower.backbone.get_layer("convolution")
    expected = convolution(PICTURES / 255).numpy().reshape(3, 15 * 15, 8)
    regions, mask = tower.sequence(PICTURES)
    assert np.allclose(regions, expected, atol=1e-5)
    assert mask.shape == (3, 15 * 15) and np.all(mask)
    # Its mean is what the backbone pools.
    assert np.allclose(np.mean(regions, axis=1), tower.features(PICTURES), atol=1e-5)
    with pytest.raises(ValueError, match="pools no feature map: it has no regions"):
        shows_its_input().sequence(PICTURES)


def make_two_maps():
    """A network whose maps of 6 x 6 are the picture and its double."""
    images = keras.Input((6, 6, 3))
    doubled = keras.layers.Rescaling(2, name="doubled")(
        keras.layers.Rescaling(1, name="plain")(images)
    )
    smaller = keras.layers.MaxPooling2D(2, name="smaller")(doubled)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(smaller))


def test_regions_may_be_of_several_layers_and_averaged(tmp_path):
    tower = image_tower(make_two_maps(), image_size=6, embedding_dim=4)
    embedding = tower(PICTURES[:, :6, :6])
    tower.set_regions(["plain", "doubled"], pool=2)
    regions, mask = tower.sequence(PICTURES[:, :6, :6])
    squares = PICTURES[:, :6, :6].reshape(3, 3, 2, 3, 2, 3).mean(axis=(2, 4)).reshape(3, 9, 3)
    assert np.allclose(regions, np.concatenate([squares, 2 * squares], axis=2), atol=1e-4)
    assert mask.shape == (3, 9)
    assert np.array_equal(tower(PICTURES[:, :6, :6]), embedding)
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(ImageTower, tmp_path / "tower.keras")
    assert loaded.sequence_settings == [["plain", "doubled"], 2]
    assert np.array_equal(loaded.sequence(PICTURES[:, :6, :6])[0], regions)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["plain", "smaller"], "maps of one size; these have the sides plain 6, smaller 3"),
        (["none"], "no feature map 'none'; its last are input_layer.*, plain, doubled, smaller"),
    ],
)
def test_regions_that_do_not_fit_are_refused(names, message):
    tower = image_tower(make_two_maps(), image_size=6, embedding_dim=4)
    with pytest.raises(ValueError, match=message):
        tower.set_regions(names)
    with pytest.raises(ValueError, match="pool must be an integer of at least 1; got 0"):
        tower.set_regions(pool=0)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_tower_round_trips_and_stays_frozen_or_not(tmp_path, trainable):
    tower = image_tower(make_backbone(), image_size=32, embedding_dim=4, trainable=trainable)
    tower.sequence(PICTURES)  # what it keeps is not saved
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(ImageTower, tmp_path / "tower.keras")
    assert np.array_equal(loaded(PICTURES), tower(PICTURES))
    assert loaded.image_size == 32 and len(loaded.weights) == len(tower.weights)
    # Kernel and bias of the projection; with scale and shift of a frozen backbone's features.
    frozen, thawed = [(8,), (8,), (8, 4), (4,)], [(8, 4), (4,), (3, 3, 3, 8), (8,)]
    for each in (tower, loaded):
        shapes = [tuple(weight.shape) for weight in each.trainable_weights]
        assert shapes == (thawed if trainable else frozen)


def test_a_partly_thawed_backbone_stays_so(tmp_path):
    images = keras.Input((None, None, 3))
    maps = layers.Conv2D(4, 3, name="last")(layers.Conv2D(4, 3, name="first")(images))
    backbone = keras.Model(images, layers.GlobalAveragePooling2D()(maps))
    tower = image_tower(backbone, image_size=16, embedding_dim=4)
    thaw(backbone, "last")
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(ImageTower, tmp_path / "tower.keras")
    paths = [each.path for each in loaded.backbone.trainable_variables]
    assert paths == ["last/kernel", "last/bias"]


def test_a_backbone_that_starts_from_scratch_is_trained():
    tower = image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=4)
    assert tower.backbone.trainable and not tower.head.normalize
    frozen = image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=4, trainable=False)
    assert not frozen.backbone.trainable and frozen.head.normalize
    assert frozen(PICTURES[:, :16, :16]).shape == (3, 4)


def test_a_tower_can_be_summarised_and_predicts(tower, capsys):
    tower.summary()
    assert "head" in capsys.readouterr().out
    rows = tower.predict(PICTURES, verbose=0)
    assert np.allclose(rows, tower(PICTURES), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": "SmallCNN", "weights": None, "scales": [48, 64]},
            "SmallCNN takes pictures of one size",
        ),
        (
            {"backbone": make_backbone(side=24), "scales": [24, 32]},
            r"sides, in pixels, that the backbone takes \(24\); got \[24, 32\]",
        ),
        ({"backbone": make_backbone(), "scales": []}, r"takes \(any\); got \[\]"),
        ({"backbone": make_backbone(), "min_crop": 0}, "min_crop must be above 0 .*; got 0"),
        ({"backbone": make_backbone(), "min_crop": 1.5}, "at most 1; got 1.5"),
        ({"backbone": make_backbone(), "corner_crops": [0.8, 1]}, r"below 1; got \[0.8, 1\]"),
        ({"backbone": make_backbone(), "embedding_dim": 4, "members": 0}, "got 4 and 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_tower(**arguments)
