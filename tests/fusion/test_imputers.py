"""Imputers: what they fill in, by eye and against NumPy; masks, gradients and saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.fusion import (
    Concatenate,
    ConstantImputer,
    MeanImputer,
    ModalityPredictor,
    NearestImputer,
)

WIDTHS = {"image": 4, "text": 3}
IMPUTERS = {
    "constant": lambda: ConstantImputer(0.5),
    "mean": MeanImputer,
    "nearest": lambda: NearestImputer(neighbours=2),
    "predictor": lambda: ModalityPredictor(units=8),
}
every_imputer = pytest.mark.parametrize("name", IMPUTERS)


def rows(n=6, seed=0):
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(size=(n, width)).astype(np.float32) for name, width in WIDTHS.items()
    }


def with_gaps(inputs):
    """The first row complete, the second without an image, the third without a text."""
    gaps = {name: vectors.copy() for name, vectors in inputs.items()}
    gaps["image"][1] = 0
    gaps["text"][2] = 0
    return gaps


@pytest.fixture(scope="module")
def imputers():
    """Every imputer with its weights, which are random in the predictor: not to be changed."""
    keras.utils.set_random_seed(0)
    made = {name: make() for name, make in IMPUTERS.items()}
    made["constant"](rows())
    made["mean"].adapt(rows())
    made["nearest"].adapt(rows())
    made["predictor"].start({name: (1, width) for name, width in WIDTHS.items()})
    return made


@every_imputer
def test_only_absent_rows_are_filled_in(name, imputers):
    gaps = with_gaps(rows(3, seed=1))
    filled = {key: each.numpy() for key, each in imputers[name](gaps).items()}
    assert np.array_equal(filled["image"][[0, 2]], gaps["image"][[0, 2]])
    assert np.array_equal(filled["text"][[0, 1]], gaps["text"][[0, 1]])
    assert np.abs(filled["image"][1]).max() > 0 and np.abs(filled["text"][2]).max() > 0


@every_imputer
def test_absent_rows_never_change_what_is_filled_in(name, imputers):
    inputs, imputer = rows(3, seed=1), imputers[name]
    mask = {"image": np.array([True, False, True]), "text": np.array([True, True, False])}
    expected = {key: each.numpy() for key, each in imputer(with_gaps(inputs)).items()}
    for content in (1e6, np.nan):
        wild = {key: vectors.copy() for key, vectors in inputs.items()}
        wild["image"][1] = content
        wild["text"][2] = content
        filled = imputer(wild, mask=mask)
        for key in WIDTHS:
            assert np.allclose(filled[key].numpy(), expected[key], atol=1e-6)


@every_imputer
def test_a_modality_that_is_left_out_is_filled_in_all_rows(name, imputers):
    inputs, imputer = rows(3, seed=1), imputers[name]
    nothing = np.zeros_like(inputs["text"])
    expected = imputer({"image": inputs["image"], "text": nothing})["text"].numpy()
    assert np.allclose(imputer({"image": inputs["image"]})["text"].numpy(), expected, atol=1e-6)


@every_imputer
def test_a_saved_imputer_before_a_fusion_fills_in_the_same(name, imputers, tmp_path):
    symbolic = {key: keras.Input((width,), name=key) for key, width in WIDTHS.items()}
    filled = imputers[name](symbolic)
    model = keras.Model(symbolic, {**filled, "fused": Concatenate(2)(filled)})
    model.save(tmp_path / "imputer.keras")
    loaded = keras.saving.load_model(tmp_path / "imputer.keras")
    for n in (3, 5):
        gaps = with_gaps(rows(n, seed=2))
        again, expected = loaded(gaps), model(gaps)
        assert again["fused"].shape == (n, 2)
        for key in expected:
            assert np.allclose(again[key], expected[key], atol=1e-6)


def test_the_mean_is_over_the_present_rows():
    imputer = MeanImputer()
    text = np.ones((3, 1), np.float32)
    imputer.adapt({"image": np.array([[1.0, 3], [0, 0], [3, 5]]), "text": text})
    assert imputer({"text": text})["image"].numpy().tolist() == [[2.0, 4.0]] * 3
    imputer.adapt({"image": np.array([[5.0, 5]]), "text": text[:1]})  # starts again
    assert imputer({"text": text})["image"].numpy().tolist() == [[5.0, 5.0]] * 3


def test_the_nearest_are_those_that_numpy_finds():
    memory, gaps = rows(50), with_gaps(rows(3, seed=1))
    imputer = NearestImputer(neighbours=4)
    imputer.adapt(memory)
    cosines = memory["text"] @ gaps["text"][1]
    cosines /= np.linalg.norm(memory["text"], axis=1)
    expected = memory["image"][np.argsort(-cosines)[:4]].mean(axis=0)
    assert np.allclose(imputer(gaps)["image"].numpy()[1], expected, atol=1e-6)


def test_the_nearest_imputer_keeps_complete_rows_only():
    imputer = NearestImputer(neighbours=1)
    imputer.adapt(with_gaps(rows(6)))
    assert imputer.memory["image"].shape == (4, 4)


def test_the_predictor_learns_the_other_modality():
    """The text is a rotation of the image: the predictions come close to it."""
    generator = np.random.default_rng(0)
    image = generator.normal(size=(512, 4)).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    rotation = np.linalg.qr(generator.normal(size=(4, 4)))[0].astype(np.float32)
    keras.utils.set_random_seed(0)
    predictor = ModalityPredictor(units=64)
    known = {"image": image[:400], "text": image[:400] @ rotation}
    predictor.adapt(known, epochs=6, batch_size=16, learning_rate=0.01)
    unseen, truth = image[400:], image[400:] @ rotation
    text = predictor({"image": unseen})["text"].numpy()
    back = predictor({"text": truth})["image"].numpy()
    assert (text * truth).sum(axis=1).mean() > 0.95
    assert (back * unseen).sum(axis=1).mean() > 0.95


def test_the_gradient_reaches_every_weight_of_the_predictor(imputers):
    inputs, predictor = rows(3), imputers["predictor"]
    absent = {key: np.zeros_like(vectors) for key, vectors in inputs.items()}
    with tf.GradientTape() as tape:
        loss = 0.0
        for key in WIDTHS:
            filled = predictor({**inputs, key: absent[key]})[key]
            loss += keras.ops.sum(filled * np.arange(WIDTHS[key]))
    gradients = tape.gradient(loss, predictor.trainable_variables)
    assert len(gradients) == 8
    assert all(np.abs(gradient.numpy()).max() > 0 for gradient in gradients)


def test_of_several_predictions_the_mean_is_filled_in():
    keras.utils.set_random_seed(0)
    predictor = ModalityPredictor(units=4)
    predictor.start({"audio": (1, 3), "image": (1, 4), "text": (1, 3)})
    inputs = {"audio": rows()["text"], **rows()}
    one, two = (predictor({name: inputs[name]})["text"].numpy() for name in ("audio", "image"))
    both = predictor({name: inputs[name] for name in ("audio", "image")})["text"].numpy()
    assert np.allclose(both, (one + two) / 2, atol=1e-6)


def test_mistakes_are_explained(imputers):
    incomplete = {"image": np.zeros((2, 4)), "text": np.ones((2, 3))}
    with pytest.raises(ValueError, match="no row has every modality"):
        NearestImputer().adapt(incomplete)
    with pytest.raises(ValueError, match="expected at least 5 complete rows.* got 2"):
        NearestImputer().adapt(rows(2))
    with pytest.raises(ValueError, match="already has its rows: make a new one"):
        imputers["nearest"].adapt(rows())
    with pytest.raises(ValueError, match="image is absent in all rows"):
        MeanImputer().adapt(incomplete)
    with pytest.raises(ValueError, match="MeanImputer has nothing to fill in yet: call adapt"):
        MeanImputer()(incomplete)
    with pytest.raises(ValueError, match="neighbours must be at least 1; got 0"):
        NearestImputer(neighbours=0)
