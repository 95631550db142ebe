"""Early and hybrid fusion: padding, single vectors, and the masks of Keras' own layers."""

import keras
import numpy as np
import pytest

from mmret_tf.fusion import EarlyFusion, HybridFusion

DIM = 8
FUSIONS = {
    "EarlyFusion": lambda: EarlyFusion(DIM, units=8),
    "HybridFusion": lambda: HybridFusion(DIM, heads=2),
}
every_fusion = pytest.mark.parametrize("name", FUSIONS)


@every_fusion
def test_padding_never_changes_a_result(name, sequences, moved):
    inputs = sequences()
    layer = moved(FUSIONS[name], inputs)
    padded = {other: np.pad(rows, ((0, 0), (0, 3), (0, 0))) for other, rows in inputs.items()}
    assert np.allclose(layer(padded).numpy(), layer(inputs).numpy(), atol=1e-5)


@every_fusion
def test_the_order_of_the_words_counts(name, sequences, moved):
    inputs = sequences()
    layer = moved(FUSIONS[name], inputs)
    turned = inputs | {"text": inputs["text"][:, ::-1]}
    assert np.abs(layer(turned).numpy() - layer(inputs).numpy()).max() > 1e-3


@every_fusion
def test_one_vector_is_a_sequence_of_one(name, vectors, moved):
    rows = vectors()
    layer = moved(FUSIONS[name], rows)
    alone = {other: each[:, None] for other, each in rows.items()}
    assert np.allclose(layer(alone).numpy(), layer(rows).numpy(), atol=1e-6)


def test_words_come_with_the_mask_of_their_embedding():
    """Padding ids of an Embedding with mask_zero are absent, though their vectors are not zeros."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    words = keras.layers.Embedding(9, 5, mask_zero=True)(tokens)
    model = keras.Model(tokens, EarlyFusion(DIM, units=8)({"text": words}))
    short, long = np.array([[3, 4, 0, 0]]), np.array([[3, 4, 5, 0]])
    assert np.allclose(model(short), model(short[:, :2]), atol=1e-5)
    assert not np.allclose(model(short), model(long), atol=1e-3)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="multiple of heads; got 6 and 4"):
        HybridFusion(6)
    with pytest.raises(ValueError, match="units must be a multiple of 4; got 6"):
        EarlyFusion(6, units=6)
