"""What holds for every fusion: unit rows, absent vectors, masks, gradients, saving and training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from mmret_tf.fusion import (
    Concatenate,
    EarlyFusion,
    EnsembleFusion,
    GatedFusion,
    HybridFusion,
    WeightedSum,
)
from mmret_tf.fusion.fusion import ModalityLayer, presence, present_rows

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
ALL = LATE | {
    "EarlyFusion": lambda: EarlyFusion(DIM, units=8),
    "HybridFusion": lambda: HybridFusion(DIM, heads=2),
}
every_fusion = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def inputs_of(vectors, sequences):
    """A function that draws the inputs of a fusion."""
    return lambda name, *settings: (vectors if name in LATE else sequences)(*settings)


@pytest.fixture(scope="module")
def layers(inputs_of, moved):
    """Every fusion with moved weights: not to be trained."""
    return {name: moved(make, inputs_of(name)) for name, make in ALL.items()}


@pytest.fixture(scope="module")
def results(layers, inputs_of):
    """What each layer makes of its five rows."""
    return {name: layer(inputs_of(name)).numpy() for name, layer in layers.items()}


def test_vectors_of_zeros_are_absent():
    image = np.array([[0.0, 0.0], [0.6, 0.8]])
    text = np.array([[[1.0], [0.0]], [[0.0], [0.0]]])
    assert presence(image).numpy().tolist() == [False, True]
    assert presence(text).numpy().tolist() == [[True, False], [False, False]]
    assert present_rows(image).numpy().tolist() == [False, True]
    assert present_rows(text).numpy().tolist() == [True, False]


def test_a_mask_makes_zeros_and_modalities_are_in_the_order_of_the_widths():
    layer = ModalityLayer()
    layer.build({"text": (None, None, 2), "image": (None, 2), "audio": (None, 1)})
    inputs = {
        "text": np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32),
        "image": np.array([[np.nan, 1.0], [2.0, 3.0]], np.float32),
    }
    mask = {"text": np.array([[True, False], [True, True]]), "image": np.array([False, True])}
    known = layer.known_vectors(inputs, mask | {"audio": None})
    assert list(known) == ["audio", "image", "text"]
    assert known["audio"].numpy().tolist() == [[0], [0]]
    assert known["image"].numpy().tolist() == [[0, 0], [2, 3]]
    assert known["text"].numpy().tolist() == [[[1, 2], [0, 0]], [[5, 6], [7, 8]]]
    whole = layer.known_vectors(inputs, {"text": np.array([False, True])})["text"].numpy()
    assert whole.tolist() == [[[0, 0], [0, 0]], [[5, 6], [7, 8]]]


@every_fusion
def test_results_are_unit_rows_of_the_given_width(name, layers, inputs_of, results):
    for rows, result in ((1, layers[name](inputs_of(name, 1)).numpy()), (5, results[name])):
        assert result.shape == (rows, DIM)
        assert np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-5)


@every_fusion
@pytest.mark.parametrize("absent", NAMES)
def test_absent_vectors_never_change_a_result(name, absent, layers, inputs_of, results):
    inputs, layer = inputs_of(name), layers[name]
    contents = [inputs[absent], *(np.full_like(inputs[absent], each) for each in (1e6, np.nan))]
    changed = {other: np.concatenate([each] * 3) for other, each in inputs.items()}
    changed[absent] = np.concatenate(contents)
    expected, *others = np.split(layer(changed, mask={absent: np.zeros(15, bool)}).numpy(), 3)
    assert np.abs(expected - results[name]).max() > 0.01  # it counted before
    assert np.allclose(others, expected, atol=1e-6)
    # Zeros are absent without a mask, and so is a modality that is left out.
    zeros = inputs | {absent: np.zeros_like(inputs[absent])}
    assert np.allclose(layer(zeros).numpy(), expected, atol=1e-6)
    others = {other: inputs[other] for other in NAMES if other != absent}
    assert np.allclose(layer(others).numpy(), expected, atol=1e-6)


@every_fusion
def test_the_order_of_the_inputs_does_not_matter(name, layers, inputs_of, results):
    backwards = dict(reversed(inputs_of(name).items()))
    assert np.array_equal(layers[name](backwards).numpy(), results[name])


@every_fusion
def test_each_row_has_its_own_mask(name, layers, inputs_of, results):
    inputs, layer = inputs_of(name), layers[name]
    mask = {"audio": np.array([True, False, True, True, False]), "image": None, "text": None}
    without = layer(inputs, mask={"audio": np.zeros(5, bool)}).numpy()
    expected = np.where(mask["audio"][:, None], results[name], without)
    assert np.allclose(layer(inputs, mask=mask).numpy(), expected, atol=1e-5)


@every_fusion
def test_a_row_with_nothing_becomes_zeros_and_its_gradient_is_finite(name, layers, inputs_of):
    layer = layers[name]
    nothing = {other: np.zeros_like(rows) for other, rows in inputs_of(name).items()}
    with tf.GradientTape() as tape:
        result = layer(nothing, training=True)
        loss = ops.sum(result)
    assert np.array_equal(result.numpy(), np.zeros((5, DIM)))
    gradients = tape.gradient(loss, layer.trainable_variables)
    assert all(np.isfinite(ops.convert_to_numpy(g)).all() for g in gradients if g is not None)


@every_fusion
def test_the_gradient_reaches_every_weight_from_the_start(name, inputs_of):
    inputs = inputs_of(name)
    keras.utils.set_random_seed(0)
    layer = ALL[name]()
    layer(inputs)
    direction = np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = ops.sum(layer(inputs, training=True) * direction)
    for weight, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, layer.trainable_variables), strict=True
    ):
        assert gradient is not None and np.abs(gradient.numpy()).max() > 0, weight.path


@every_fusion
def test_a_saved_model_gives_the_same_results(name, layers, inputs_of, tmp_path):
    layer = layers[name]
    shapes = {other: rows.shape[1:] for other, rows in inputs_of(name).items()}
    symbolic = {other: keras.Input(shape, name=other) for other, shape in shapes.items()}
    keras.Model(symbolic, layer(symbolic)).save(tmp_path / "fusion.keras")
    loaded = keras.saving.load_model(tmp_path / "fusion.keras")  # in safe mode
    for batch in (5, 2):
        rows = inputs_of(name, batch, 3)
        assert np.allclose(loaded(rows), layer(rows), atol=1e-6)


@pytest.mark.parametrize("name", ["Concatenate", "GatedFusion", "WeightedSum learned"])
def test_fit_finds_the_modality_that_matters(name, vectors):
    """The target is the image's own vector; audio and text are noise."""
    inputs = vectors(64)
    keras.utils.set_random_seed(0)
    symbolic = {other: keras.Input((DIM,), name=other) for other in inputs}
    model = keras.Model(symbolic, ALL[name]()(symbolic))
    before = np.sum(model(inputs) * inputs["image"], axis=1).mean()
    model.compile(keras.optimizers.Adam(0.03), keras.losses.CosineSimilarity())
    steps = tf.data.Dataset.from_tensors((inputs, inputs["image"])).repeat(60)
    model.fit(steps, shuffle=False, verbose=0)
    after = np.sum(model(inputs) * inputs["image"], axis=1).mean()
    assert after > before + 0.2 and after > 0.85


def test_mistakes_are_explained():
    rows = {"image": np.eye(2, dtype=np.float32)}
    with pytest.raises(ValueError, match=r"takes \[batch, width\]; got image of shape \(2, 1, 2\)"):
        Concatenate(2)({"image": rows["image"][:, None]})
    with pytest.raises(ValueError, match=r"\[batch, length, width\]; got image of shape \(2,\)"):
        EarlyFusion(2, units=4)({"image": rows["image"][:, 0]})
    layer = Concatenate(2)
    layer(rows)
    with pytest.raises(ValueError, match="was built for image; got sound as well"):
        layer({**rows, "sound": rows["image"]})
