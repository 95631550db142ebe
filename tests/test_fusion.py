"""The fusions, early, late, hybrid and of scores: formulas, masks, gradients and round trips."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from mmret_tf.fusion import (
    Concatenate,
    EarlyFusion,
    GatedFusion,
    HybridFusion,
    WeightedSum,
    presence,
)
from mmret_tf.missing import EnsembleFusion
from mmret_tf.score_fusion import ReciprocalRankFusion, WeightedScores

DIM = 8
NAMES = ("audio", "image", "text")


def make_ensemble():
    def head():
        return keras.Sequential([keras.Input((DIM,)), keras.layers.Dense(DIM, activation="tanh")])

    return EnsembleFusion({name: head() for name in NAMES})


LATE = {
    "Concatenate": lambda: Concatenate(DIM),
    "WeightedSum": lambda: WeightedSum({"audio": 1.0, "image": 2.0, "text": 3.0}),
    "WeightedSum learned": lambda: WeightedSum(learned=True),
    "GatedFusion": lambda: GatedFusion(DIM),
    "EnsembleFusion": make_ensemble,
}
JOINT = {
    "EarlyFusion": lambda: EarlyFusion(DIM, units=8),
    "HybridFusion": lambda: HybridFusion(DIM, heads=2),
}
ALL = LATE | JOINT
every_fusion = pytest.mark.parametrize("name", ALL)


def vectors(batch=5, seed=0):
    """Unit rows of three modalities."""
    rows = np.random.default_rng(seed).normal(size=(3, batch, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return dict(zip(NAMES, rows, strict=True))


def sequences(batch=5, seed=0):
    """Sequences of three modalities, of different lengths and widths, with zeros at their ends."""
    generator = np.random.default_rng(seed)
    inputs = {}
    for name, length, width in zip(NAMES, (2, 4, 6), (3, 8, 5), strict=True):
        inputs[name] = generator.normal(size=(batch, length, width)).astype(np.float32)
        inputs[name][::2, length // 2 :] = 0
    return inputs


def trained(name, inputs):
    """The layer, called once, with all its weights moved off their start."""
    keras.utils.set_random_seed(0)
    layer = ALL[name]()
    layer(inputs)
    generator = np.random.default_rng(1)
    layer.set_weights([w + 0.3 * generator.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def inputs_of(name, batch=5, seed=0):
    return vectors(batch, seed) if name in LATE else sequences(batch, seed)


@every_fusion
def test_results_are_unit_rows_of_the_width_asked_for(name):
    for batch in (1, 5):
        inputs = inputs_of(name, batch)
        result = trained(name, inputs)(inputs).numpy()
        assert result.shape == (batch, DIM)
        assert np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-5)


@every_fusion
@pytest.mark.parametrize("absent", NAMES)
def test_what_is_absent_never_changes_a_result(name, absent):
    inputs = inputs_of(name)
    layer = trained(name, inputs)
    mask = {other: np.ones(5, bool) for other in NAMES} | {absent: np.zeros(5, bool)}
    expected = layer(inputs, mask=mask).numpy()
    assert np.abs(expected - layer(inputs).numpy()).max() > 0.01  # it did count before

    for content in (np.zeros_like(inputs[absent]), 1e6, np.nan):
        changed = inputs | {absent: np.full_like(inputs[absent], content)}
        assert np.allclose(layer(changed, mask=mask).numpy(), expected, atol=1e-6)
    # Zeros are absent without a mask, and so is a modality that is left out.
    zeros = inputs | {absent: np.zeros_like(inputs[absent])}
    assert np.allclose(layer(zeros).numpy(), expected, atol=1e-6)
    others = {other: inputs[other] for other in NAMES if other != absent}
    assert np.allclose(layer(others).numpy(), expected, atol=1e-6)


@every_fusion
def test_the_order_of_the_inputs_does_not_matter(name):
    inputs = inputs_of(name)
    layer = trained(name, inputs)
    backwards = dict(reversed(inputs.items()))
    assert np.array_equal(layer(backwards).numpy(), layer(inputs).numpy())


@every_fusion
def test_each_row_is_masked_for_itself(name):
    inputs = inputs_of(name)
    layer = trained(name, inputs)
    mask = {"audio": np.array([True, False, True, True, False])}
    mixed = layer(inputs, mask=mask | {"image": None, "text": None}).numpy()
    with_all, without = layer(inputs).numpy(), layer(inputs, mask={"audio": np.zeros(5, bool)})
    expected = np.where(mask["audio"][:, None], with_all, without.numpy())
    assert np.allclose(mixed, expected, atol=1e-5)


@every_fusion
def test_a_row_with_nothing_gives_zeros_and_no_gradient_of_nan(name):
    inputs = inputs_of(name)
    layer = trained(name, inputs)
    nothing = {other: np.zeros_like(rows) for other, rows in inputs.items()}
    with tf.GradientTape() as tape:
        result = layer(nothing, training=True)
        loss = ops.sum(result)
    assert np.array_equal(result.numpy(), np.zeros((5, DIM)))
    gradients = tape.gradient(loss, layer.trainable_variables)
    assert all(np.isfinite(ops.convert_to_numpy(g)).all() for g in gradients if g is not None)


@every_fusion
def test_the_gradient_reaches_every_weight(name):
    inputs = inputs_of(name)
    keras.utils.set_random_seed(0)
    layer = ALL[name]()
    layer(inputs)  # as it starts, not `trained`
    direction = np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = ops.sum(layer(inputs, training=True) * direction)
    for weight, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, layer.trainable_variables), strict=True
    ):
        assert gradient is not None and np.abs(gradient.numpy()).max() > 0, weight.path


@every_fusion
def test_a_saved_model_answers_the_same(name, tmp_path):
    inputs = inputs_of(name)
    layer = trained(name, inputs)
    symbolic = {other: keras.Input(rows.shape[1:], name=other) for other, rows in inputs.items()}
    keras.Model(symbolic, layer(symbolic)).save(tmp_path / "fusion.keras")
    loaded = keras.saving.load_model(tmp_path / "fusion.keras")  # in safe mode
    for batch in (5, 2):
        rows = inputs_of(name, batch, seed=3)
        expected = layer(rows).numpy()
        assert np.allclose(loaded.predict(rows, verbose=0), expected, atol=1e-6)


@every_fusion
def test_fit_learns_which_modality_matters(name):
    """The target is the image's own vector; with audio and text, both noise, it has to be found."""
    inputs = vectors(64)
    keras.utils.set_random_seed(0)
    symbolic = {other: keras.Input((DIM,), name=other) for other in inputs}
    model = keras.Model(symbolic, ALL[name]()(symbolic))
    model.compile(keras.optimizers.Adam(0.03), keras.losses.CosineSimilarity())
    before = model.evaluate(inputs, inputs["image"], verbose=0)
    model.fit(inputs, inputs["image"], batch_size=64, epochs=60, verbose=0)
    after = model.evaluate(inputs, inputs["image"], verbose=0)
    if name == "WeightedSum":  # its weights are fixed
        assert after == before
    else:
        assert after < before - 0.2 and after < -0.85


def test_concatenate_is_the_formula():
    rows = vectors()
    layer = trained("Concatenate", rows)
    kernel, bias = layer.get_weights()
    product = np.concatenate([rows[name] for name in NAMES], axis=1) @ kernel + bias
    expected = product / np.linalg.norm(product, axis=1, keepdims=True)
    assert np.allclose(layer(rows).numpy(), expected, atol=1e-5)


def test_a_concatenation_within_one_space_starts_as_the_sum():
    rows = vectors()
    total = sum(rows.values())
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    for layer in (Concatenate(DIM), GatedFusion(DIM), WeightedSum(), WeightedSum(learned=True)):
        assert np.allclose(layer(rows).numpy(), expected, atol=1e-5)


def test_weighted_sum_by_eye():
    rows = {
        "image": ops.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        "text": ops.array([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
    }
    layer = WeightedSum({"image": 0.6, "text": 0.8})
    assert np.allclose(layer(rows).numpy(), [[0.6, 0.8], [1, 0], [0, 1]])


def test_gates_are_a_softmax_over_what_is_there():
    rows = vectors() | {"text": np.zeros((5, DIM), np.float32)}
    layer = trained("GatedFusion", rows)
    values = np.stack([layer.values[name](rows[name]).numpy() for name in ("audio", "image")], 1)
    logits = layer.gates(np.concatenate([rows[name] for name in NAMES], axis=1)).numpy()
    logits = np.exp(logits.reshape(5, 3, DIM)[:, :2])  # those of the text are last
    product = (values * logits / logits.sum(axis=1, keepdims=True)).sum(axis=1)
    expected = product / np.linalg.norm(product, axis=1, keepdims=True)
    assert np.allclose(layer(rows).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", JOINT)
def test_padding_never_changes_a_result(name):
    inputs = sequences()
    layer = trained(name, inputs)
    padded = {other: np.pad(rows, ((0, 0), (0, 3), (0, 0))) for other, rows in inputs.items()}
    assert np.allclose(layer(padded).numpy(), layer(inputs).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", JOINT)
def test_one_vector_is_a_sequence_of_one(name):
    rows = vectors()
    layer = trained(name, rows)
    alone = {other: each[:, None] for other, each in rows.items()}
    assert np.allclose(layer(alone).numpy(), layer(rows).numpy(), atol=1e-6)


def test_a_mask_of_a_whole_sequence_leaves_its_padding_absent():
    inputs = {"text": np.array([[[1.0], [0.0]], [[1.0], [2.0]]], np.float32)}
    assert presence(inputs)["text"].numpy().tolist() == [[True, False], [True, True]]
    masked = presence(inputs, {"text": np.array([True, False])})
    assert masked["text"].numpy().tolist() == [[True, False], [False, False]]


def test_words_come_with_the_mask_of_their_embedding():
    """Keras' own masks are obeyed: padding ids of an Embedding with mask_zero are absent."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    words = keras.layers.Embedding(9, 5, mask_zero=True)(tokens)
    model = keras.Model(tokens, EarlyFusion(DIM, units=8)({"text": words}))
    short, long = np.array([[3, 4, 0, 0]]), np.array([[3, 4, 5, 0]])
    assert np.allclose(model(short), model(short[:, :2]), atol=1e-5)
    assert not np.allclose(model(short), model(long), atol=1e-3)


def test_mistakes_are_explained():
    rows = {"image": np.eye(2, dtype=np.float32), "text": np.ones((2, 3), np.float32)}
    with pytest.raises(ValueError, match="one width; got {'image': 2, 'text': 3}"):
        WeightedSum()(rows)
    with pytest.raises(ValueError, match="above 0; got {'image': 0.0}"):
        WeightedSum({"image": 0.0})
    with pytest.raises(ValueError, match="must name image; got text"):
        WeightedSum({"text": 1.0})({"image": rows["image"]})
    with pytest.raises(ValueError, match=r"takes \[batch, width\]; got image of shape \(2, 1, 2\)"):
        Concatenate(2)({"image": rows["image"][:, None]})
    with pytest.raises(ValueError, match="multiple of heads; got 6 and 4"):
        HybridFusion(6)
    layer = Concatenate(2)
    layer({"image": rows["image"]})
    with pytest.raises(ValueError, match="was made for image; got sound too"):
        layer({"image": rows["image"], "sound": rows["image"]})


SCORES = {
    "image": np.array([[0.9, 0.5, np.nan], [0.1, 0.1, 0.3]], np.float32),
    "text": np.array([[0.2, 0.6, 0.4], [np.nan, 0.0, np.nan]], np.float32),
}


def test_weighted_scores_by_eye():
    assert np.allclose(
        WeightedScores({"image": 1.0, "text": 3.0})(SCORES).numpy(),
        [[(0.9 + 0.6) / 4, (0.5 + 1.8) / 4, 0.4], [0.1, 0.1 / 4, 0.3]],
    )


def test_reciprocal_ranks_by_eye():
    """Image ranks 1, 2, none and 3, 3, 1 (a tie has its worst rank); text 3, 1, 2 and none, 1."""
    expected = [
        [(1 / 61 + 1 / 63) / 2, (1 / 62 + 1 / 61) / 2, 1 / 62],
        [1 / 63, (1 / 63 + 1 / 61) / 2, 1 / 61],
    ]
    assert np.allclose(ReciprocalRankFusion()(SCORES).numpy(), expected)


@pytest.mark.parametrize(
    "layer", [WeightedScores({"image": 1.0, "text": 2.0}), ReciprocalRankFusion(7)]
)
def test_scores_of_what_is_absent_do_not_count(layer):
    there = {name: ~np.isnan(scores) for name, scores in SCORES.items()}
    there["image"][0, 0] = False
    expected = layer(
        {"image": np.where(there["image"], SCORES["image"], np.nan)} | {"text": SCORES["text"]}
    )
    for content in (5.0, np.inf, -np.inf):
        filled = {
            name: np.where(there[name], each, np.float32(content)) for name, each in SCORES.items()
        }
        assert np.allclose(layer(filled, mask=there).numpy(), expected.numpy())
    nothing = {name: np.full((2, 3), np.nan, np.float32) for name in SCORES}
    assert np.all(layer(nothing).numpy() == -np.inf)
    again = type(layer).from_config(layer.get_config())
    assert np.array_equal(again(SCORES).numpy(), layer(SCORES).numpy())


def test_score_fusion_refuses_what_it_cannot_weigh():
    with pytest.raises(ValueError, match="must name image, text; got image"):
        WeightedScores({"image": 1.0})(SCORES)
    with pytest.raises(ValueError, match="constant must be at least 0; got -1"):
        ReciprocalRankFusion(-1)
