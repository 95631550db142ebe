"""Missing modalities: what imputers fill in, by eye and against NumPy, and what dropout hides."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.fusion import Concatenate
from mmret_tf.missing import (
    ConstantImputer,
    EnsembleFusion,
    MeanImputer,
    ModalityDropout,
    ModalityPredictor,
    NearestImputer,
)

WIDTHS = {"image": 4, "text": 3}


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


IMPUTERS = {
    "constant": lambda: ConstantImputer(0.5),
    "mean": MeanImputer,
    "nearest": lambda: NearestImputer(neighbours=2),
    "predictor": lambda: ModalityPredictor(units=8),
}
every_imputer = pytest.mark.parametrize("name", IMPUTERS)


def adapted(name, n=6):
    keras.utils.set_random_seed(0)
    imputer = IMPUTERS[name]()
    if name == "constant":
        imputer(rows(n))
    else:
        imputer.adapt(rows(n))
    return imputer


@every_imputer
def test_only_what_is_absent_is_filled_in(name):
    gaps = with_gaps(rows(3, seed=1))
    filled = {key: each.numpy() for key, each in adapted(name)(gaps).items()}
    assert np.array_equal(filled["image"][[0, 2]], gaps["image"][[0, 2]])
    assert np.array_equal(filled["text"][[0, 1]], gaps["text"][[0, 1]])
    assert np.abs(filled["image"][1]).max() > 0 and np.abs(filled["text"][2]).max() > 0


@every_imputer
def test_what_is_absent_never_changes_what_is_filled_in(name):
    inputs, imputer = rows(3, seed=1), adapted(name)
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
def test_a_saved_imputer_fills_in_the_same(name, tmp_path):
    imputer = adapted(name)
    symbolic = {key: keras.Input((width,), name=key) for key, width in WIDTHS.items()}
    keras.Model(symbolic, imputer(symbolic)).save(tmp_path / "imputer.keras")
    loaded = keras.saving.load_model(tmp_path / "imputer.keras")
    for n in (3, 5):
        gaps = with_gaps(rows(n, seed=2))
        filled = loaded.predict(gaps, verbose=0)
        for key, expected in imputer(gaps).items():
            assert np.allclose(filled[key], expected.numpy(), atol=1e-6)


@every_imputer
def test_a_modality_that_is_left_out_is_filled_in_all_rows(name):
    inputs, imputer = rows(3, seed=1), adapted(name)
    nothing = np.zeros_like(inputs["text"])
    expected = imputer({"image": inputs["image"], "text": nothing})["text"].numpy()
    assert np.allclose(imputer({"image": inputs["image"]})["text"].numpy(), expected, atol=1e-6)


def test_the_mean_is_of_what_is_there():
    imputer = MeanImputer()
    imputer.adapt({"image": np.array([[1.0, 3], [0, 0], [3, 5]]), "text": np.ones((3, 1))})
    filled = imputer({"image": np.zeros((1, 2), np.float32), "text": np.ones((1, 1), np.float32)})
    assert filled["image"].numpy().tolist() == [[2.0, 4.0]]
    imputer.adapt({"image": np.array([[5.0, 5]]), "text": np.ones((1, 1))})  # anew
    filled = imputer({"image": np.zeros((1, 2), np.float32), "text": np.ones((1, 1), np.float32)})
    assert filled["image"].numpy().tolist() == [[5.0, 5.0]]


def test_the_nearest_are_those_that_numpy_finds():
    memory, gaps = rows(50), with_gaps(rows(3, seed=1))
    imputer = NearestImputer(neighbours=4)
    imputer.adapt(memory)
    cosines = memory["text"] @ gaps["text"][1]
    cosines /= np.linalg.norm(memory["text"], axis=1)
    expected = memory["image"][np.argsort(-cosines)[:4]].mean(axis=0)
    assert np.allclose(imputer(gaps)["image"].numpy()[1], expected, atol=1e-6)


def test_the_nearest_imputer_keeps_complete_rows_alone():
    imputer = NearestImputer(neighbours=1)
    imputer.adapt(with_gaps(rows(6)))
    assert imputer.memory["image"].shape == (4, 4)


def test_the_predictor_learns_the_other_modality():
    """The text is a rotation of the image: what is filled in comes close to the truth."""
    generator = np.random.default_rng(0)
    image = generator.normal(size=(512, 4)).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    rotation = np.linalg.qr(generator.normal(size=(4, 4)))[0].astype(np.float32)
    keras.utils.set_random_seed(0)
    predictor = ModalityPredictor(units=64)
    predictor.adapt({"image": image[:400], "text": image[:400] @ rotation}, epochs=40)
    unseen, truth = image[400:], image[400:] @ rotation
    nothing = np.zeros_like(unseen)
    text = predictor({"image": unseen, "text": nothing})["text"].numpy()
    back = predictor({"image": nothing, "text": truth})["image"].numpy()
    assert (text * truth).sum(axis=1).mean() > 0.95
    assert (back * unseen).sum(axis=1).mean() > 0.95


def test_the_gradient_reaches_every_weight_of_the_predictor():
    inputs, predictor = rows(3), adapted("predictor")
    absent = {key: np.zeros_like(vectors) for key, vectors in inputs.items()}
    with tf.GradientTape() as tape:
        loss = 0.0
        for key in WIDTHS:
            filled = predictor({**inputs, key: absent[key]})[key]
            loss += keras.ops.sum(filled * np.arange(WIDTHS[key]))
    gradients = tape.gradient(loss, predictor.trainable_variables)
    assert len(gradients) == 8
    assert all(np.abs(gradient.numpy()).max() > 0 for gradient in gradients)


def test_an_ensemble_is_the_sum_of_its_models():
    def head(seed):
        dense = keras.layers.Dense(
            2, kernel_initializer=keras.initializers.GlorotUniform(seed), use_bias=False
        )
        return keras.Sequential([keras.Input((2,)), dense])

    models = {"image": head(1), "text": head(2)}
    inputs = {"image": np.array([[1.0, 2], [3, 4]]), "text": np.array([[5.0, 6], [0, 0]])}
    parts = {name: inputs[name] @ models[name].get_weights()[0] for name in models}
    image = parts["image"] / np.linalg.norm(parts["image"], axis=1, keepdims=True)
    text = parts["text"][0] / np.linalg.norm(parts["text"][0])
    both = (image[0] + text) / np.linalg.norm(image[0] + text)
    result = EnsembleFusion(models)({k: v.astype(np.float32) for k, v in inputs.items()}).numpy()
    assert np.allclose(result, [both, image[1]], atol=1e-6)


def test_dropout_hides_at_its_rate_and_never_the_last():
    keras.utils.set_random_seed(0)
    dropout = ModalityDropout(0.4)
    present = {name: np.ones(20_000, bool) for name in ("audio", "image", "text")}
    present["text"][:10_000] = False
    kept = np.stack([each.numpy() for each in dropout(present, training=True).values()], axis=1)
    assert kept.any(axis=1).all()
    assert not kept[:10_000, 2].any()
    # Of three, one stays, and each of the other two is hidden at the rate.
    assert kept[10_000:].mean() == pytest.approx(1 - 0.4 * 2 / 3, abs=0.01)
    assert kept[:10_000, :2].mean() == pytest.approx(1 - 0.4 / 2, abs=0.01)
    again = np.stack([each.numpy() for each in dropout(present, training=True).values()], axis=1)
    assert (kept != again).any()
    for still in (dropout(present), ModalityDropout(0.0)(present, training=True)):
        assert all(np.array_equal(each, present[name]) for name, each in still.items())


def test_dropout_hides_a_sequence_as_a_whole():
    keras.utils.set_random_seed(0)
    present = {"image": np.ones((200, 4), bool), "text": np.ones((200, 1), bool)}
    kept = ModalityDropout(0.5)(present, training=True)["image"].numpy()
    assert 0 < kept.all(axis=1).sum() < 200
    assert np.array_equal(kept.all(axis=1), kept.any(axis=1))


def test_mistakes_are_explained():
    incomplete = {"image": np.zeros((2, 4)), "text": np.ones((2, 3))}
    with pytest.raises(ValueError, match="no row with every modality"):
        NearestImputer().adapt(incomplete)
    with pytest.raises(ValueError, match="5 neighbours need as many complete rows; got 2"):
        NearestImputer().adapt(rows(2))
    with pytest.raises(ValueError, match="no row of image to take the mean of"):
        MeanImputer().adapt(incomplete)
    with pytest.raises(ValueError, match="MeanImputer has seen nothing yet.*call adapt"):
        MeanImputer()(incomplete)
    with pytest.raises(ValueError, match="neighbours must be at least 1; got 0"):
        NearestImputer(neighbours=0)
    with pytest.raises(ValueError, match="rate must be from 0 to below 1; got 1"):
        ModalityDropout(1)
    heads = {
        name: keras.Sequential([keras.Input((2,)), keras.layers.Dense(width)])
        for name, width in WIDTHS.items()
    }
    with pytest.raises(ValueError, match=r"vectors of one width; got \[3, 4\]"):
        EnsembleFusion(heads)
    heads["text"] = heads["image"]
    with pytest.raises(ValueError, match=r"models for \['image', 'text'\]; got \['image'\]"):
        EnsembleFusion(heads)({"image": np.ones((1, 2))})


def test_an_imputer_before_a_fusion_in_a_functional_model():
    imputer = adapted("mean")
    symbolic = {key: keras.Input((width,), name=key) for key, width in WIDTHS.items()}
    model = keras.Model(symbolic, Concatenate(2)(imputer(symbolic)))
    assert model.predict(with_gaps(rows(3)), verbose=0).shape == (3, 2)
