"""The ensemble of models against NumPy, the rows that modality dropout hides, and one of three
modalities missing."""

import keras
import numpy as np
import pytest
from conftest import make_backbone, make_text

from mmret_tf.fusion import (
    Concatenate,
    ConstantImputer,
    EnsembleFusion,
    FusedEncoder,
    GatedFusion,
    MeanImputer,
    ModalityDropout,
    ModalityPredictor,
    NearestImputer,
    WeightedSum,
)
from mmret_tf.models import MultiEncoder, audio_tower, image_tower, text_tower

DIM = 8  # as of the rows of `vectors`
NAMES = ("audio", "image", "text")


def head(seed=0, width=2, takes=2):
    kernel = keras.initializers.GlorotUniform(seed)
    dense = keras.layers.Dense(width, kernel_initializer=kernel, use_bias=False)
    return keras.Sequential([keras.Input((takes,)), dense])


def test_an_ensemble_is_the_sum_of_its_models():
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
    inputs = {name: np.ones((20_000, 1), np.float32) for name in ("audio", "image", "text")}
    inputs["text"][:10_000] = 0
    draws = [dropout(inputs, training=True).values() for _ in range(2)]
    kept, again = (np.concatenate([each.numpy() for each in draw], axis=1) > 0 for draw in draws)
    assert kept.any(axis=1).all()
    assert not kept[:10_000, 2].any()
    # One of three stays, and each of the other two is hidden at the rate.
    assert kept[10_000:].mean() == pytest.approx(1 - 0.4 * 2 / 3, abs=0.01)
    assert kept[:10_000, :2].mean() == pytest.approx(1 - 0.4 / 2, abs=0.01)
    assert (kept != again).any()
    for still in (dropout(inputs), ModalityDropout(0.0)(inputs, training=True)):
        assert all(np.array_equal(each, inputs[name]) for name, each in still.items())


def test_dropout_hides_a_sequence_as_a_whole():
    keras.utils.set_random_seed(0)
    inputs = {"image": np.ones((200, 4, 2)), "text": np.ones((200, 1, 2))}
    kept = ModalityDropout(0.5)(inputs, training=True)["image"].numpy().reshape(200, 8)
    assert 0 < kept.all(axis=1).sum() < 200
    assert np.array_equal(kept.all(axis=1), kept.any(axis=1))


FUSIONS = {
    "weighted sum": lambda: WeightedSum({"image": 3.0, "audio": 1.0, "text": 2.0}),
    "concatenated": lambda: Concatenate(DIM),
    "gated": lambda: GatedFusion(DIM),
    "ensemble": lambda: EnsembleFusion({name: head(0, DIM, DIM) for name in NAMES}),
}
IMPUTERS = {
    "none": lambda: None,
    "constant": lambda: ConstantImputer(0.1),
    "mean": MeanImputer,
    "nearest": lambda: NearestImputer(neighbours=2),
    "predicted": lambda: ModalityPredictor(units=4),
}


@pytest.fixture(scope="module")
def encoder():
    """Pictures, sounds and texts in a space of 8 numbers."""
    listener = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    towers = [
        image_tower(make_backbone(), image_size=16, embedding_dim=DIM),
        audio_tower(listener, rate=16, seconds=1.0, embedding_dim=DIM),
        text_tower(make_text(), word_dim=4, units=4, embedding_dim=DIM),
    ]
    return MultiEncoder(towers)


@pytest.fixture(scope="module")
def imputers(vectors):
    """Each imputer, adapted to ten complete items."""
    keras.utils.set_random_seed(0)
    made = {name: make() for name, make in IMPUTERS.items()}
    for name in ("mean", "nearest", "predicted"):
        made[name].adapt(vectors(10, seed=1))
    return made


@pytest.mark.parametrize("imputer", IMPUTERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_item_may_miss_one_of_three(fusion, imputer, encoder, imputers, vectors, moved):
    whole = vectors(6)
    fused = FusedEncoder(encoder, moved(FUSIONS[fusion], whole), imputers[imputer])
    complete = fused(whole).numpy()
    some = {name: rows.copy() for name, rows in whole.items()}
    for row, name in enumerate(NAMES):
        some[name][row] = 0
    rows = fused(some).numpy()
    assert np.isfinite(rows).all()
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    # Of the rows that miss one, each has changed; the others know nothing of them.
    assert (np.abs(rows[:3] - complete[:3]).max(axis=1) > 1e-3).all()
    assert np.allclose(rows[3:], complete[3:], atol=1e-6)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="rate must be at least 0 and below 1; got 1"):
        ModalityDropout(1)
    with pytest.raises(ValueError, match=r"vectors of one width; got \[2, 3\]"):
        EnsembleFusion({"image": head(), "text": head(width=3)})
    with pytest.raises(ValueError, match="the model of text must .* a keras.Input"):
        EnsembleFusion({"image": head(), "text": keras.Sequential([keras.layers.Dense(2)])})
    with pytest.raises(ValueError, match=r"models for \['image', 'text'\]; got \['image'\]"):
        EnsembleFusion({"image": head(), "text": head()})({"image": np.ones((1, 2))})
