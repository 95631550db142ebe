"""The audio tower: windows, loudness, order in time, round trips, caches and exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_text

import mmret_tf as mm
from mmret_tf.data.decoders.audio import load_audio
from mmret_tf.data.decoders.sounds import encode_wav
from mmret_tf.models import AudioTower, audio_tower
from mmret_tf.models.dual_encoder import load_as
from mmret_tf.models.towers.audio import LogPower, spectrogram_cnn

RATE = 4000
TIME = np.arange(RATE) / RATE
LOW, HIGH = (0.5 * np.sin(2 * np.pi * pitch * TIME) for pitch in (200, 1200))


@pytest.fixture(scope="module")
def tower():
    """One second at 4 kHz; not to be changed."""
    keras.utils.set_random_seed(0)
    return audio_tower(rate=RATE, seconds=1.0, embedding_dim=8)


@pytest.fixture(scope="module")
def model(tower):
    """An encoder of sounds and texts; not to be changed."""
    return mm.MultiEncoder([tower, mm.text_tower(make_text(), units=8, embedding_dim=8)])


def test_sounds_are_decoded_as_by_load_audio(tower):
    files = [encode_wav(LOW, RATE), encode_wav(HIGH[:100], RATE), encode_wav(LOW, 2 * RATE)]
    expected = [load_audio(each, RATE, 1.0) for each in files]
    assert np.array_equal(tower.preprocess(tf.constant(files)), expected)


def test_training_hears_windows_of_a_longer_sound_that_follow_from_the_seeds(tower):
    ramp = np.linspace(0, 1, 3 * RATE)
    sources, still = tf.constant([encode_wav(ramp, RATE)] * 6), tf.fill([6], False)
    seeds = tf.constant(np.arange(12).reshape(6, 2))
    windows = tower.augment(sources, seeds, still).numpy()
    assert np.array_equal(tower.augment(sources, seeds, ~still), windows)  # no left and right
    assert len(set(windows[:, 0])) == 6  # six places
    assert np.allclose(windows[:, -1] - windows[:, 0], 1 / 3, atol=1e-3)  # a third of the ramp
    whole = tf.constant([encode_wav(LOW, RATE)])
    assert np.array_equal(tower.augment(whole, seeds[:1], still[:1]), tower.preprocess(whole))


def test_an_embedding_does_not_depend_on_what_else_is_in_the_batch(tower):
    quiet = LOW * 1e-3
    alone, together = tower(quiet[None]), tower(np.stack([quiet, HIGH, LOW]))[:1]
    assert np.allclose(alone, together, atol=1e-5)
    assert np.allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


def test_the_logarithm_of_power_ends_where_16_bits_end():
    powers = np.array([[0.0, 1e-30, 1e-8, 1.0, np.e]])
    expected = [[np.log(1e-8)] * 3 + [0.0, 1.0]]
    assert np.allclose(LogPower()(powers), expected, atol=1e-6)


def test_the_features_keep_the_order_of_what_is_heard(tower):
    first, second = (
        np.concatenate([LOW[:2000], HIGH[:2000]]),
        np.concatenate([HIGH, LOW])[2000:6000],
    )
    features = np.asarray(tower.features(np.stack([first, second])))
    steps = features.reshape(2, -1, 4 * 128)
    assert not np.allclose(features[0], features[1], atol=1e-2)
    # The same spectrum at other times: their means differ much less than they do.
    difference = np.abs(steps[0] - steps[1]).mean()
    assert np.abs(steps[0].mean(0) - steps[1].mean(0)).mean() < 0.5 * difference


def test_the_sequence_has_a_vector_for_each_span_of_time(tower):
    vectors, mask = tower.sequence(np.stack([LOW, HIGH, LOW]))
    assert vectors.shape == (3, 4, 128) and mask.shape == (3, 4) and np.all(mask)  # 4 quarters
    assert tower.sequence_shape() == (4, 128) and tower.is_ordered


def test_a_saved_tower_gives_the_same_embeddings(tower, tmp_path):
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(AudioTower, tmp_path / "tower.keras")
    batch = np.stack([LOW, HIGH])
    assert np.array_equal(loaded(batch), tower(batch))
    assert loaded.settings == tower.settings == [RATE, 1.0]


def test_another_rate_or_length_is_another_space(tower):
    others = [audio_tower(rate=RATE, seconds=2.0), audio_tower(rate=2 * RATE, seconds=0.5)]
    assert len({str(each.settings) for each in (tower, *others)}) == 3


def test_a_backbone_of_ones_own(tmp_path):
    samples = keras.Input((RATE,))
    loudness = keras.layers.Reshape((1,))(keras.ops.max(samples, axis=1))
    backbone = keras.Model(samples, loudness)
    own = audio_tower(backbone, rate=RATE, seconds=1.0, embedding_dim=4)
    assert not own.backbone.trainable and np.allclose(own.features(LOW[None]), LOW.max())
    backbone.save(tmp_path / "own.keras")
    read = audio_tower(tmp_path / "own.keras", rate=RATE, seconds=1.0, embedding_dim=4)
    assert np.allclose(read.features(LOW[None]), LOW.max())
    with pytest.raises(
        ValueError, match=r"must take samples \[batch, 8000\]; this one takes \(None, 4000\)"
    ):
        audio_tower(backbone, rate=RATE, seconds=2.0)
    with pytest.raises(ValueError, match=r"returns \[batch, features\], .* \(None, 4000, 1\)"):
        audio_tower(keras.Model(samples, samples[:, :, None]), rate=RATE, seconds=1.0)


def test_half_precision_keeps_the_spectrogram_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        tower = audio_tower(rate=RATE, seconds=1.0, embedding_dim=4)
    finally:
        keras.config.set_dtype_policy("float32")
    layers = {type(each).__name__: each for each in tower.backbone.layers}
    assert layers["MelSpectrogram"].compute_dtype == layers["LogPower"].compute_dtype == "float32"
    assert layers["Conv2D"].compute_dtype == "bfloat16"
    assert tower(LOW[None]).dtype == tf.float32


def test_features_of_a_frozen_backbone_are_cached(tmp_path):
    sounds = {"audio": [[encode_wav(each, RATE)] for each in (LOW, HIGH)]}
    items = mm.data.Collection(
        ["low", "high"], sounds | {"text": [["a low tone"], ["a high tone"]]}
    )
    pairs = items.pairs("audio", "text")
    frozen = audio_tower(spectrogram_cnn(RATE, 1.0), rate=RATE, seconds=1.0, embedding_dim=8)
    encoder = mm.MultiEncoder([frozen, mm.text_tower(make_text(), units=8, embedding_dim=8)])
    cache = mm.training.FeatureCache(frozen, pairs.first_sources, tmp_path / "features")
    cached = cache.encoder(encoder).encode("audio", cache.cached(pairs).first_sources)
    assert np.allclose(cached, encoder.encode("audio", pairs.first_sources), atol=1e-5)


def test_an_export_encodes_and_searches_by_sound(model, tmp_path):
    sounds = {"audio": [[encode_wav(each, RATE)] for each in (LOW, HIGH)]}
    items = mm.data.Collection(["low", "high"], sounds | {"text": [["a low tone"], ["高音"]]})
    store = mm.EmbeddingStore.export(model, items, tmp_path / "embeddings")
    searcher = mm.Searcher(
        model, mm.BruteForceIndex.build(store.embeddings, store.ids), store.items
    )
    served = tf.saved_model.load(mm.export_saved_model(searcher, tmp_path / "toy", 1, k=2))
    files = [encode_wav(HIGH, RATE), encode_wav(LOW, RATE), encode_wav(HIGH[:1000], RATE)]
    for some in (files[:1], files):  # another number of rows
        answer = served.signatures["encode_audio"](audio=tf.constant(some))["embedding"]
        assert np.allclose(answer, model.encode("audio", some), atol=1e-5)
        found = served.signatures["search_by_audio"](audio=tf.constant(some))
        expected = [searcher.search(audio=each, k=2) for each in some]
        assert found["ids"].numpy().astype(str).tolist() == [
            [result.id for result in each] for each in expected
        ]
    assert searcher.search(audio=files[0], k=1)[0].id == "high"
    with pytest.raises(tf.errors.InvalidArgumentError, match="FLAC"):  # it is refused by name
        served.signatures["encode_audio"](audio=tf.constant([b"fLaC" + bytes(100)]))
