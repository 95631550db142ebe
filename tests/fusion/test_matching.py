"""Regions and words: cross attention against the formula in NumPy, and readers."""

import keras
import numpy as np
import pytest

from mmret_tf.fusion import CrossAttentionMatch, PartReader


def unit_rows(random, *shape):
    rows = random.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def score_of(regions, words, sharpness):
    """The definition, word by word."""
    fits = []
    for word in words:
        cosines = regions @ word
        weights = np.exp(sharpness * cosines)
        found = weights @ regions
        fits.append(found @ word / np.linalg.norm(found))
    return np.mean(fits)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 1), (2, 4)])
def test_it_is_the_mean_cosine_of_the_words_with_what_they_find(n, m):
    random = np.random.default_rng(0)
    regions, words = unit_rows(random, n, 5, 4), unit_rows(random, m, 3, 4)
    layer = CrossAttentionMatch()
    expected = [[score_of(one, other, 9) for other in words] for one in regions]
    assert layer([regions, words]).numpy() == pytest.approx(np.array(expected), abs=1e-5)
    layer.log_sharpness.assign(0)
    assert float(layer([regions, words])[0, 0]) == pytest.approx(
        score_of(regions[0], words[0], 1), abs=1e-5
    )


def test_padding_changes_nothing_and_nothing_at_all_scores_0():
    random = np.random.default_rng(0)
    regions, words = unit_rows(random, 2, 5, 4), unit_rows(random, 2, 3, 4)
    layer = CrossAttentionMatch()
    padded = (np.pad(each, ((0, 0), (0, 2), (0, 0))) for each in (regions, words))
    expected = layer([regions, words]).numpy()
    assert layer(list(padded)).numpy() == pytest.approx(expected, abs=1e-6)
    nothing = np.zeros((1, 3, 4), np.float32)
    assert not layer([nothing, words]).numpy().any() and not layer([regions, nothing]).numpy().any()


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_reader_gives_unit_vectors_and_zeros_for_padding(is_ordered):
    keras.utils.set_random_seed(0)
    reader = PartReader(dim=4, is_ordered=is_ordered, dropout=0.5)
    parts = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    parts[1, 1:] = 0
    read = reader(parts).numpy()
    lengths = np.linalg.norm(read, axis=2)
    assert lengths == pytest.approx(np.array([[1, 1, 1], [1, 0, 0]]), abs=1e-5)
    longer = np.pad(parts[1:, :1], ((0, 0), (0, 2), (0, 0)))
    assert reader(longer).numpy()[0, 0] == pytest.approx(read[1, 0], abs=1e-5)
    again = PartReader.from_config(reader.get_config())
    again.build(parts.shape)
    again.set_weights(reader.get_weights())
    assert again(parts).numpy() == pytest.approx(read, abs=1e-6)


def test_a_reader_with_a_table_reads_its_words_by_their_ids():
    keras.utils.set_random_seed(0)
    reader = PartReader(dim=4, is_ordered=True, table=(5, 6))
    ids = np.array([[3, 1, 2], [4, 0, 0]])
    read = reader(ids).numpy()
    plain = PartReader(dim=4, is_ordered=True)
    vectors = reader.words(ids).numpy() * (ids != 0)[:, :, None]
    plain.build(vectors.shape)
    plain.set_weights(
        [each.numpy() for each in reader.weights if each is not reader.words.weights[0]]
    )
    assert read == pytest.approx(plain(vectors).numpy(), abs=1e-6)
    assert not read[1, 1:].any() and PartReader.from_config(reader.get_config()).words is not None


def test_order_counts_for_words_and_place_for_regions():
    keras.utils.set_random_seed(0)
    parts = np.random.default_rng(0).normal(size=(1, 3, 6)).astype(np.float32)
    for is_ordered in (True, False):
        reader = PartReader(dim=4, is_ordered=is_ordered)
        forth, back = reader(parts).numpy(), reader(parts[:, ::-1]).numpy()[:, ::-1]
        assert np.abs(forth - back).max() > 1e-3
