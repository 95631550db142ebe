"""Encoders of any modalities: three toy towers in one space, variants, items, collapse."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.data.modalities import MODALITIES, Modality, register_modality
from mmret_tf.models import Head, MultiEncoder, Tower, VariantEncoder, load_model
from mmret_tf.models.collapse import COLLAPSED
from mmret_tf.similarity import losses

MODALITY_NAMES = ("number", "word", "sign")


@keras.saving.register_keras_serializable("test_encoder")
class NumberTower(Tower):
    """Digits as text -> unit vectors."""

    modality = "number"

    def __init__(self, head, **kwargs):
        super().__init__(head, **kwargs)
        self.backbone = keras.layers.Embedding(10, head.width, name="backbone")
        self.backbone.build((None,))

    def preprocess(self, sources):
        return tf.strings.to_number(sources, tf.int32)

    def features(self, inputs, training=False):
        return self.backbone(inputs)


@keras.saving.register_keras_serializable("test_encoder")
class WordTower(NumberTower):
    modality = "word"


@keras.saving.register_keras_serializable("test_encoder")
class SignTower(NumberTower):
    modality = "sign"


@pytest.fixture(scope="module", autouse=True)
def toy_modalities():
    for name in MODALITY_NAMES:
        register_modality(Modality(name, (".txt",), check=len, thumbnail=None))
    yield
    for name in MODALITY_NAMES:
        del MODALITIES[name]


def make_encoder(embedding_dim=4, **settings):
    """Three towers over the digits 0 to 9."""
    keras.utils.set_random_seed(0)
    towers = [kind(Head(6, embedding_dim, name="head")) for kind in (NumberTower, WordTower)]
    towers.append(SignTower(Head(6, embedding_dim, name="head")))
    encoder = MultiEncoder(towers, **settings)
    encoder.compile(keras.optimizers.Adam(0.05), losses.ContrastiveCosine(), run_eagerly=True)
    return encoder


@pytest.fixture(scope="module")
def encoder():
    """Not to be changed."""
    return make_encoder()


DIGITS = [str(digit).encode() for digit in range(10)]
INPUTS = {name: np.arange(4) for name in MODALITY_NAMES}


def test_any_of_the_modalities_may_be_absent(encoder):
    assert encoder.modalities == list(MODALITY_NAMES)
    everything = encoder(INPUTS)
    for names in [("word",), ("sign", "number"), MODALITY_NAMES]:
        some = encoder({name: INPUTS[name] for name in names})
        assert set(some) == set(names)
        for name in names:
            assert np.array_equal(some[name], everything[name])
            assert np.allclose(np.linalg.norm(some[name], axis=1), 1, atol=1e-5)


def test_encode_goes_by_the_modality(encoder):
    for name in MODALITY_NAMES:
        expected = encoder({name: np.arange(10)})[name]
        assert np.allclose(encoder.encode(name, DIGITS), expected, atol=1e-6)
        assert np.allclose(encoder.encode(name, DIGITS, batch_size=3), expected, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        losses.ContrastiveCosine(),
        losses.CosineSimilarityLoss(),
        losses.TripletCosine(),
        losses.EuclideanContrastive(),
    ],
    ids=lambda loss: loss.name,
)
def test_the_loss_is_summed_over_all_pairs_of_modalities(loss):
    encoder = make_encoder()
    encoder.compile("sgd", loss, run_eagerly=True)
    rows = encoder(INPUTS)
    expected = [
        float(loss(np.arange(4), {one: rows[one], two: rows[two], "temperature": 0.07}))
        for one, two in itertools.combinations(MODALITY_NAMES, 2)
    ]
    found = encoder.evaluate(INPUTS, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(sum(expected), rel=1e-4)

    some = {name: INPUTS[name] for name in ("number", "sign")}
    found = encoder.evaluate(some, np.arange(4), verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(expected[1], rel=1e-4)


def test_batches_of_several_pairs_are_summed():
    loss, pairs = losses.ContrastiveCosine(), [("number", "word"), ("sign", "word")]
    encoder = make_encoder()
    encoder.compile(keras.optimizers.Adam(0.05), loss)  # as a graph, too
    inputs = tuple({name: np.arange(4) for name in names} for names in pairs)
    # 3 and 7 are rows of one item in the first part alone.
    groups = np.array([0, 1, 2, 0]), np.arange(4)
    rows = encoder(inputs)
    assert [list(each) for each in rows] == [list(names) for names in pairs]
    expected = [
        float(loss(group, {**each, "temperature": 0.07}))
        for group, each in zip(groups, rows, strict=True)
    ]
    batches = tf.data.Dataset.from_tensors((inputs, groups))
    found = encoder.evaluate(batches, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(sum(expected), rel=1e-4)

    numbered = tf.data.Dataset.from_tensors((inputs, (np.arange(4), np.arange(4))))
    encoder.fit(numbered.repeat(30), verbose=0)
    rows = [encoder.encode(name, DIGITS[:4]) for name in ("number", "sign")]  # met through words
    assert np.argmax(rows[0] @ rows[1].T, axis=1).tolist() == [0, 1, 2, 3]


def test_the_spread_is_that_of_the_narrowest_modality(encoder):
    rows = encoder(INPUTS)
    spreads = [1 - np.sum(np.mean(each, axis=0) ** 2) for each in rows.values()]
    found = encoder.evaluate(INPUTS, verbose=0, return_dict=True)["spread"]
    assert found == pytest.approx(min(spreads), abs=1e-5)


def test_three_modalities_learn_to_agree_and_round_trip(tmp_path):
    encoder = make_encoder()
    encoder.run_eagerly = False
    encoder.fit(INPUTS, epochs=30, verbose=0)
    rows = [encoder.encode(name, DIGITS[:4]) for name in MODALITY_NAMES]
    for one, two in itertools.combinations(rows, 2):
        assert np.argmax(one @ two.T, axis=1).tolist() == [0, 1, 2, 3]

    encoder.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert type(loaded) is MultiEncoder and loaded.fingerprint == encoder.fingerprint
    assert float(loaded.temperature()) == float(encoder.temperature()) != pytest.approx(0.07)
    for name, expected in zip(MODALITY_NAMES, rows, strict=True):
        assert np.array_equal(loaded.encode(name, DIGITS[:4]), expected)


def test_an_item_is_the_mean_of_its_sources_in_its_first_modality(encoder):
    numbers, words = (encoder.encode(name, DIGITS) for name in ("number", "word"))

    def mean(vectors):
        return vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))

    found = encoder.encode_items(
        {
            "number": [DIGITS[:1], DIGITS[1:4], [], []],
            "word": [[], DIGITS[:2], DIGITS[2:3], DIGITS[4:9]],
        }
    )
    expected = [numbers[0], mean(numbers[1:4]), words[2], mean(words[4:9])]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # A single source keeps its embedding bit by bit.
    assert np.array_equal(encoder.encode_items({"word": [[each] for each in DIGITS]}), words)
    assert np.array_equal(encoder.mean_embeddings("word", [[], []]), np.zeros((2, 4)))


def test_all_sources_of_items_are_encoded_in_one_call(encoder, monkeypatch):
    calls = []

    def encode(modality, sources):
        calls.append((modality, len(sources)))
        return np.eye(4, dtype=np.float32)[: len(sources)]

    monkeypatch.setattr(encoder, "encode", encode)
    encoder.encode_items({"sign": [["a", "b"], [], ["c", "d"]], "number": [[], ["e"], []]})
    assert calls == [("number", 1), ("sign", 4)]


class Reversed:
    """A form of a tower: its embeddings with the coordinates in reverse order."""

    batch_size = 2

    def __init__(self, tower):
        self.tower, self.modality = tower, tower.modality
        self.embedding_dim = tower.embedding_dim

    def preprocess(self, sources):
        return self.tower.preprocess(sources)

    compiled_preprocess = preprocess

    def predict_on_batch(self, inputs):
        return self.tower.predict_on_batch(inputs)[:, ::-1]


def test_a_variant_encodes_with_other_forms_in_the_same_space(encoder):
    variant = VariantEncoder(encoder, {"word": Reversed(encoder.towers["word"])}, form="int8")
    words, signs = (encoder.encode(name, DIGITS) for name in ("word", "sign"))
    assert np.allclose(variant.encode("word", DIGITS), words[:, ::-1], atol=1e-6)
    assert np.array_equal(variant.encode("sign", DIGITS), signs)
    items = {"word": [DIGITS[:1], []], "sign": [[], DIGITS[3:4]]}
    expected = [words[0, ::-1], signs[3]]
    assert np.allclose(variant.encode_items(items), expected, atol=1e-6)
    assert variant.fingerprint == encoder.fingerprint
    assert variant.modalities == encoder.modalities
    assert (variant.embedding_dim, variant.form, encoder.form) == (4, "int8", "float32")


def test_with_towers_shares_all_the_rest():
    encoder, other = make_encoder(), NumberTower(Head(3, 4))
    changed = encoder.with_towers({"number": other})
    assert changed.modalities == encoder.modalities
    assert changed.towers["number"] is other
    assert changed.towers["word"] is encoder.towers["word"]
    assert changed.temperature is encoder.temperature
    changed.compile(keras.optimizers.SGD(0.1), losses.ContrastiveCosine(), run_eagerly=True)
    before = encoder.encode("word", DIGITS)
    changed.fit(INPUTS, verbose=0)
    assert not np.allclose(encoder.encode("word", DIGITS), before)


def test_the_fingerprint_covers_weights_and_settings(encoder, monkeypatch):
    before = encoder.fingerprint
    again = make_encoder()  # from the same seed
    assert len(before) == 64 and again.fingerprint == before
    again.fit(INPUTS, verbose=0)
    assert again.fingerprint != before
    monkeypatch.setattr(NumberTower, "settings", [17])
    assert encoder.fingerprint != before


def test_collapse_raises_one_alarm():
    encoder = make_encoder()
    # With zero kernels only the biases are left: every input gets the same embedding.
    for tower in encoder.towers.values():
        [projection] = tower.head.projections
        projection.set_weights([np.zeros((6, 4)), np.ones(4)])
    encoder.optimizer.learning_rate = 0.0
    with pytest.warns(UserWarning, match="embeddings have collapsed") as caught:
        history = encoder.fit(INPUTS, epochs=3, verbose=0).history
    assert len([each for each in caught if "collapsed" in str(each.message)]) == 1
    assert max(history["spread"]) < COLLAPSED


def test_healthy_training_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_encoder().fit(INPUTS, epochs=2, verbose=0)


def test_extra_losses_of_layers_are_added():
    """A regularizer in a tower counts once, whatever the number of pairs."""
    encoder = make_encoder()
    plain = encoder.evaluate(INPUTS, verbose=0, return_dict=True)["loss"]
    table = encoder.towers["number"].backbone
    table.embeddings.regularizer = keras.regularizers.L2(0.5)
    found = encoder.evaluate(INPUTS, verbose=0, return_dict=True)["loss"]
    expected = plain + 0.5 * np.sum(table.get_weights()[0] ** 2)
    assert found == pytest.approx(expected, rel=1e-4)


def test_towers_must_fit_together():
    number, word = NumberTower(Head(6, 4)), WordTower(Head(6, 8))
    with pytest.raises(ValueError, match=r"same embedding_dim; got {'number': 4, 'word': 8}"):
        MultiEncoder([number, word])
    twice = WordTower(Head(6, 4, members=2))
    with pytest.raises(ValueError, match=r"same members; got {'number': 1, 'word': 2}"):
        MultiEncoder([number, twice])
    for towers in ([number], [number, NumberTower(Head(6, 4))]):
        with pytest.raises(ValueError, match="needs towers of different modalities; got .*number"):
            MultiEncoder(towers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode("smell", ["a"]), "no tower for 'smell'; it has: number, word, sign"),
        (lambda m: m.encode("word", "1"), "expected a list of words; for one word, give a list"),
        (lambda m: m.encode("word", []), "nothing to encode"),
        (lambda m: m.encode("word", ["gone.txt"]), "gone.txt: No such file"),
        (lambda m: m.encode_items({"word": [[b"1"]], "sign": []}), "got {'word': 1, 'sign': 0}"),
        (lambda m: m.encode_items({"word": [[b"1"], []]}), "item 1 has no word: nothing to embed"),
        (lambda m: m.encode_items({"word": ["1.txt"]}), "must be lists; item 0 has one source"),
        (lambda m: m.encode_items({"smell": [["a"]]}), "item 0 has none of number, word, sign"),
        (lambda m: m.encode_items({}), "one list an item; got {}"),
        (lambda m: m({"smell": np.ones(2)}), r"a dict of number or word or sign; got \['smell'\]"),
        (lambda m: m({}), r"must be a dict of .*; got \[\]"),
        (lambda m: m(np.ones(2)), "must be a dict of .*; got .*Tensor"),
        (lambda m: m.evaluate({"word": np.ones(2)}, verbose=0), r"two modalities.*only \['word'\]"),
    ],
)
def test_mistakes_are_explained(encoder, call, message):
    with pytest.raises(ValueError, match=message):
        call(encoder)
