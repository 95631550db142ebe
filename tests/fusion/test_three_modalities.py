"""Late fusions and imputers with three modalities, where an item misses one of them."""

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
    ModalityPredictor,
    NearestImputer,
    WeightedSum,
)
from mmret_tf.models import MultiEncoder, audio_tower, image_tower, text_tower

DIM = 8  # as of the rows of `vectors`
NAMES = ("audio", "image", "text")


def ensemble():
    def head():
        return keras.Sequential([keras.Input((DIM,)), keras.layers.Dense(DIM)])

    return EnsembleFusion({name: head() for name in NAMES})


FUSIONS = {
    "weighted sum": lambda: WeightedSum({"image": 3.0, "audio": 1.0, "text": 2.0}),
    "concatenated": lambda: Concatenate(DIM),
    "gated": lambda: GatedFusion(DIM),
    "ensemble": ensemble,
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
