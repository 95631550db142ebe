"""Both towers: unit length, frozen or not, cached features, padding, and errors that help."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_backbone

from mmret_tf.pooling import POOLINGS, MaskedPooling
from mmret_tf.towers import RNNS, TEXT_POOLINGS, image_tower, text_tower, unit_length

UNPOOLED = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.ReLU()])
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_unit_length_is_safe_at_zero():
    rows = unit_length(np.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]]))
    assert np.allclose(rows, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)


def test_resnet50_from_scratch():
    tower = image_tower("ResNet50", weights=None, image_size=32, embedding_dim=4)
    assert tower.backbone.trainable and tower.features(PICTURES).shape == (3, 2048)
    embeddings = tower.predict(PICTURES, verbose=0)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    normalizations = {
        layer.name: layer
        for layer in tower.backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert {layer.momentum for layer in normalizations.values()} == {0.9}
    # 3, 4, 6 and 3 blocks; the first of each stage has a convolution in its shortcut.
    assert {name for name, layer in normalizations.items() if not np.any(layer.gamma)} == {
        f"conv{stage}_block{block}_3_bn"
        for stage, blocks in [(2, 3), (3, 4), (4, 6), (5, 3)]
        for block in range(2, blocks + 1)
    }


def test_only_blocks_with_an_identity_shortcut_start_as_the_identity():
    tower = image_tower("MobileNet", weights=None, image_size=32, embedding_dim=4)
    assert all(
        np.all(layer.gamma == 1)
        for layer in tower.backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )


@pytest.mark.parametrize(
    ("name", "scaled"),
    [
        ("ResNet50", lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68])),
        ("VGG16", lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68])),
        ("MobileNetV2", lambda x: x / 127.5 - 1),
        ("MobileNetV3Small", lambda x: x),
        ("EfficientNetV2B0", lambda x: x),
    ],
)
def test_each_backbone_gets_its_own_input_scaling(name, scaled):
    tower = image_tower(name, weights=None, image_size=32, embedding_dim=4)
    expected = tower.backbone(scaled(PICTURES.astype(np.float32)))
    assert np.allclose(tower.features(PICTURES), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["VGG19", "MobileNetV3Large", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_other_backbones_build(name):
    tower = image_tower(name, weights=None, image_size=32, embedding_dim=4)
    assert tower(PICTURES[:1]).shape == (1, 4)


def test_a_model_or_a_keras_file_is_a_backbone_and_is_frozen(tmp_path):
    backbone = make_backbone()
    backbone.save(tmp_path / "backbone.keras")
    for source in (backbone, tmp_path / "backbone.keras", str(tmp_path / "backbone.keras")):
        tower = image_tower(source, image_size=32, embedding_dim=4)
        assert np.allclose(tower.features(PICTURES), backbone(PICTURES), atol=1e-6)
        # Scale and shift of the normalization, kernel and bias of the projection.
        assert [weight.shape for weight in tower.trainable_weights] == [(8,), (8,), (8, 4), (4,)]
    assert image_tower(backbone, embedding_dim=4, trainable=True).backbone.trainable


def test_the_small_cnn_is_four_convolutions_in_steps_of_two(tmp_path):
    tower = image_tower("SmallCNN", weights=None, image_size=32, embedding_dim=4)
    weights = sum(layer.count_params() for layer in tower.backbone.layers if "conv" in layer.name)
    assert weights == 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256)
    assert tower.backbone.output_shape == (None, 2 * 2 * 256)  # 32 pixels, halved four times
    assert tower.backbone.trainable and not tower.normalize_features

    tower.backbone.save_weights(tmp_path / "small.weights.h5")
    again = image_tower("SmallCNN", tmp_path / "small.weights.h5", image_size=32, embedding_dim=4)
    assert np.array_equal(again.features(PICTURES), tower.features(PICTURES))
    assert not again.backbone.trainable  # it knows something already


def test_cached_features_stand_for_images():
    tower = image_tower(make_backbone(), image_size=32, embedding_dim=4)
    from_images = tower.predict(PICTURES, verbose=0)
    from_features = tower.predict(tower.features_on_batch(PICTURES), verbose=0)
    assert np.allclose(from_images, from_features, atol=1e-6)
    with pytest.raises(ValueError, match=r"or features \[batch, 8\]; got shape \(3, 32, 32\)"):
        tower(PICTURES[..., 0])


def test_a_backbone_may_see_each_picture_at_several_scales(tmp_path):
    backbone = make_backbone()
    tower = image_tower(backbone, image_size=32, embedding_dim=4, scales=[32, 48])
    larger = tf.image.resize(PICTURES, (48, 48))
    expected = (backbone(PICTURES) + backbone(larger)) / 2
    assert np.allclose(tower.features(PICTURES), expected, atol=1e-5)
    tower.save(tmp_path / "tower.keras")
    loaded = keras.saving.load_model(tmp_path / "tower.keras")
    assert np.array_equal(loaded(PICTURES), tower(PICTURES))
    named = image_tower("MobileNet", weights=None, image_size=32, embedding_dim=4, scales=[32, 48])
    assert named(PICTURES).shape == (3, 4)


def test_features_may_be_pooled_from_several_layers(tmp_path):
    images = keras.Input((None, None, 3))
    early = keras.layers.Conv2D(5, 3, strides=2, activation="relu", name="early")(images)
    late = keras.layers.Conv2D(7, 3, strides=2, activation="relu", name="late")(early)
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(late), name="small")
    tower = image_tower(backbone, image_size=32, embedding_dim=4, feature_layers=["late", "early"])
    maps = [np.asarray(each) for each in keras.Model(images, [late, early])(PICTURES)]
    pooled = [pool(each, axis=(1, 2)) for each in maps for pool in (np.mean, np.max)]
    assert np.allclose(tower.features(PICTURES), np.concatenate(pooled, axis=1), rtol=1e-5)
    assert tower.regions(PICTURES).shape == (3, 7 * 7, 7)  # of the last map, as without
    tower.save(tmp_path / "tower.keras")
    loaded = keras.saving.load_model(tmp_path / "tower.keras")
    assert np.array_equal(loaded(PICTURES), tower(PICTURES))
    with pytest.raises(ValueError, match="small has no feature map 'middle'; its last are .*late"):
        image_tower(backbone, feature_layers=["middle"])


@pytest.mark.parametrize("trainable", [False, True])
def test_image_tower_round_trips(tmp_path, trainable):
    tower = image_tower(make_backbone(), image_size=32, embedding_dim=4, trainable=trainable)
    tower.save(tmp_path / "tower.keras")
    loaded = keras.saving.load_model(tmp_path / "tower.keras")
    assert np.array_equal(loaded(PICTURES), tower(PICTURES))
    assert len(loaded.trainable_weights) == len(tower.trainable_weights)
    assert loaded.image_size == 32


def test_imagenet_weights_that_cannot_be_fetched(monkeypatch):
    def no_network(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.com: None -- unreachable")

    monkeypatch.setattr("keras.src.applications.resnet.file_utils.get_file", no_network)
    with pytest.raises(ConnectionError) as caught:
        image_tower("ResNet50", image_size=32)
    for way_on in ("--weights none", "a file", "KERAS_HOME"):
        assert way_on in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "ResNet5"}, "no backbone 'ResNet5': expected a name in keras.applications"),
        ({"backbone": "resnet"}, "no backbone 'resnet'"),
        ({"backbone": "gone.keras"}, "no model at gone.keras: expected a .keras file"),
        ({"weights": "gone.h5"}, "no weights at gone.h5"),
        ({"backbone": "SmallCNN"}, r"starts from scratch .* got 'imagenet'"),
        (
            {"backbone": "SmallCNN", "weights": None, "scales": [48, 64]},
            "SmallCNN takes pictures of one size",
        ),
        (
            {"backbone": make_backbone(side=24), "scales": [24, 32]},
            r"sides, in pixels, that the backbone takes \(24\); got \[24, 32\]",
        ),
        ({"backbone": make_backbone(), "scales": []}, r"takes \(any\); got \[\]"),
        (
            {"backbone": UNPOOLED},
            r"gives shape \(None, 8, 8, 3\)",
        ),
    ],
)
def test_backbones_that_do_not_exist_or_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_tower(**arguments)


text_towers = pytest.mark.parametrize(
    "options",
    [{"rnn": rnn, "pooling": pooling} for rnn in RNNS for pooling in TEXT_POOLINGS]
    + [{"bag_of_words": True, "pooling": "max"}],
)


@text_towers
def test_padding_never_changes_a_result(options):
    tower = text_tower(20, word_dim=8, units=8, embedding_dim=4, **options)
    short = tower(np.array([[5, 6, 7]]))
    assert np.allclose(short, tower(np.array([[5, 6, 7, 0, 0, 0, 0]])), atol=1e-6)
    assert not np.allclose(short, tower(np.array([[7, 6, 5]])), atol=1e-3)  # order matters
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)


@text_towers
def test_an_empty_caption_has_a_finite_embedding(options):
    tower = text_tower(20, word_dim=8, units=8, embedding_dim=4, **options)
    assert np.isfinite(tower(np.zeros((1, 5), int))).all()


@text_towers
def test_text_tower_round_trips(options, tmp_path):
    tower = text_tower(20, word_dim=8, units=8, embedding_dim=4, **options)
    tower.save(tmp_path / "tower.keras")
    loaded = keras.saving.load_model(tmp_path / "tower.keras")
    tokens = np.array([[5, 6, 0], [7, 0, 0]])
    assert np.array_equal(loaded(tokens), tower(tokens))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rnn": "rnn"}, "rnn must be one of lstm, gru, bilstm, transformer; got 'rnn'"),
        ({"pooling": "first"}, "pooling must be one of last, mean, max; got 'first'"),
        ({"units": 0}, "units must be at least 1; got 0"),
        ({"rnn": "transformer", "units": 6}, "units must be a multiple of 4; got 6"),
    ],
)
def test_bad_text_towers(arguments, message):
    with pytest.raises(ValueError, match=message):
        text_tower(20, **arguments)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_that_of_numpy_over_what_is_real(pooling):
    states = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.array([[True, True, False, False], [True, False, True, True], [False] * 4])
    pooled = MaskedPooling(pooling)(states, mask=mask)
    expected = [getattr(states[row][mask[row]], pooling)(axis=0) for row in (0, 1)]
    assert np.allclose(pooled, [*expected, [0, 0]], atol=1e-6)
    assert np.allclose(MaskedPooling(pooling)(states), getattr(states, pooling)(axis=1))


def test_the_bag_of_words_is_the_mean_of_the_word_vectors():
    tower = text_tower(20, word_dim=3, units=2, embedding_dim=4, bag_of_words=True)
    table = tower.get_layer("words").get_weights()[0]
    kernel, bias = tower.get_layer("projection").get_weights()
    kernel[:2] = 0  # of the state of the LSTM: only the words are left
    tower.get_layer("projection").set_weights([kernel, bias])
    expected = unit_length(table[[5, 6, 9]].mean(axis=0, keepdims=True) @ kernel[2:] + bias)
    assert np.allclose(tower(np.array([[5, 6, 9, 0, 0]])), expected, atol=1e-5)
