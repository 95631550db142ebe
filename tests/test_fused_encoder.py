"""The fused encoder: features, one embedding of what an item has, training and round trips."""

import keras
import numpy as np
import pytest
from conftest import CAPTIONS
from PIL import Image

from mmret_tf.datasets import PairDataset
from mmret_tf.fused_encoder import FusedEncoder, item_examples
from mmret_tf.fusion import Concatenate, EarlyFusion, GatedFusion, HybridFusion, WeightedSum
from mmret_tf.losses import ContrastiveTargets
from mmret_tf.missing import MeanImputer, ModalityPredictor

FUSIONS = {
    "weighted sum": WeightedSum,
    "gated": lambda: GatedFusion(4),
    "early": lambda: EarlyFusion(4, units=8),
    "hybrid": lambda: HybridFusion(4, heads=2),
}
every_fusion = pytest.mark.parametrize("name", FUSIONS)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def pictures(batch):
    return list(batch["image"])


@pytest.fixture
def pairs(tmp_path, pictures):
    paths = []
    for number, pixels in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    captions = [CAPTIONS[:2], CAPTIONS[1:], CAPTIONS[3:], CAPTIONS[:3]]
    return PairDataset(list("abcd"), paths, captions, [{}] * 4, [""] * 4)


def test_features_of_late_fusions_are_mean_embeddings(model, pictures):
    fused = FusedEncoder(model, WeightedSum())
    images = [pictures[:2], [], [pictures[3]]]
    texts = [["a red circle"], ["红色的圆", "a blue square"], []]
    features = fused.features(images, texts)
    image, text = model.encode_images(pictures), model.encode_texts(CAPTIONS)
    nothing = np.zeros(4)
    expected = [unit(image[0] + image[1]), nothing, image[3]]
    assert np.allclose(features["image"], expected, atol=1e-6)
    expected = [text[0], unit(text[2] + text[1]), nothing]
    assert np.allclose(features["text"], expected, atol=1e-6)


def test_features_of_joint_fusions_are_regions_and_words(model, pictures):
    fused = FusedEncoder(model, EarlyFusion(4, units=8))
    features = fused.features([pictures[:2], [], [pictures[3]]], [["circle red"], ["红"], []])
    # The backbone of the tests makes 7 x 7 regions of 8 numbers of 16 x 16 pixels.
    assert features["image"].shape == (3, 2 * 49, 8)
    assert np.array_equal(features["image"][1], np.zeros((98, 8)))
    regions = features["image"][2]
    assert not regions[49:].any()
    pooled = model.image_tower.features_on_batch(pictures[3][None])[0]
    assert np.allclose(regions[:49].mean(axis=0), pooled, atol=1e-4)

    words = model.text_tower.get_layer("words").get_weights()[0]
    ids = model.text_preprocessor(["circle red"]).numpy()[0]
    assert features["text"].shape == (3, 2, 8)  # as long as the longest text
    assert np.allclose(features["text"][0], words[ids[:2]], atol=1e-6)
    assert features["text"][1, 0].any() and not features["text"][1, 1].any()


def test_there_may_be_no_picture_or_no_text_at_all(model, pictures):
    for fusion in (GatedFusion(4), HybridFusion(4)):
        fused = FusedEncoder(model, fusion)
        assert fused.encode_items([[], []], [["a red circle"], ["红"]]).shape == (2, 4)
        assert fused.encode_items([[pictures[0]]], [[]]).shape == (1, 4)


def test_the_weighted_sum_of_one_modality_is_that_of_the_dual_encoder(model, pictures):
    fused = FusedEncoder(model, WeightedSum({"image": 0.3, "text": 0.7}))
    embeddings = fused.encode_items(
        [[pictures[0]], [], [pictures[1]]], [[], ["红色的圆"], ["a red circle"]]
    )
    image, text = model.encode_images(pictures), model.encode_texts(["红色的圆", "a red circle"])
    assert np.allclose(embeddings[0], image[0], atol=1e-6)
    assert np.allclose(embeddings[1], text[0], atol=1e-6)
    assert np.allclose(embeddings[2], unit(0.3 * image[1] + 0.7 * text[1]), atol=1e-6)


@every_fusion
def test_a_saved_encoder_answers_the_same(name, model, pictures, tmp_path):
    fused = FusedEncoder(model, FUSIONS[name](), modality_dropout=0.25)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")  # in safe mode
    assert loaded.dropout.rate == 0.25 and not loaded.encoder.trainable
    for images, texts in [
        ([[pictures[0]], [], [pictures[2]]], [["a red circle"], ["红色"], []]),
        ([[pictures[1]]], [["a blue square"]]),
    ]:
        expected = fused.encode_items(images, texts)
        assert np.allclose(loaded.encode_items(images, texts), expected, atol=1e-6)
        assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


def test_imputers_are_saved_with_it(model, pictures, tmp_path):
    complete = FusedEncoder(model, WeightedSum()).features([[p] for p in pictures], [CAPTIONS] * 4)
    imputer = ModalityPredictor(units=8)
    imputer.adapt(complete, epochs=1)
    fused = FusedEncoder(model, Concatenate(4), imputer)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")
    query = [[pictures[0]], []], [[], ["a red circle"]]
    assert np.allclose(loaded.encode_items(*query), fused.encode_items(*query), atol=1e-6)


def test_an_imputer_fills_in_before_the_fusion(model, pictures):
    imputer = MeanImputer()
    means = {"image": np.array([[1.0, 2, 3, 4]]), "text": np.array([[0.5, 0, 0, 0]])}
    imputer.adapt(means)
    fused = FusedEncoder(model, WeightedSum(), imputer)
    image = model.encode_images(pictures[:1])[0]
    expected = unit(image + means["text"][0])
    assert np.allclose(fused.encode_items([[pictures[0]]], [[]])[0], expected, atol=1e-6)


@every_fusion
def test_it_learns_with_fit_and_the_towers_stay(name, model, pictures):
    """Each item has to reach the direction that is its own."""
    keras.utils.set_random_seed(0)
    fused = FusedEncoder(model, FUSIONS[name]())
    weights = model.get_weights()
    inputs = fused.features([[each] for each in pictures], [[each] for each in CAPTIONS])
    targets = np.eye(4, dtype=np.float32)
    fused.compile(keras.optimizers.Adam(0.02), loss=ContrastiveTargets(0.2))
    history = fused.fit(inputs, targets, batch_size=4, epochs=60, verbose=0).history["loss"]
    assert all(np.array_equal(*pair) for pair in zip(weights, model.get_weights(), strict=True))
    if name != "weighted sum":  # nothing of it is learned
        assert history[-1] < history[0] - 0.5


def test_the_loss_of_the_document_does_as_well(model, pictures):
    fused = FusedEncoder(model, GatedFusion(4))
    inputs = fused.features([[each] for each in pictures], [[each] for each in CAPTIONS])
    fused.compile(keras.optimizers.Adam(0.05), loss=keras.losses.CosineSimilarity())
    targets = np.eye(4, dtype=np.float32)
    history = fused.fit(inputs, targets, batch_size=4, epochs=40, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.2


def test_modality_dropout_hides_in_training_alone(model, pictures):
    keras.utils.set_random_seed(0)
    fused = FusedEncoder(model, WeightedSum(), modality_dropout=0.9)
    inputs = fused.features([[pictures[0]]] * 50, [["a blue square"]] * 50)
    both = fused(inputs).numpy()
    assert np.allclose(both, both[0], atol=1e-6)
    trained = fused(inputs, training=True).numpy()
    is_image = np.isclose(trained, inputs["image"], atol=1e-5).all(axis=1)
    is_text = np.isclose(trained, inputs["text"], atol=1e-5).all(axis=1)
    assert is_image.sum() > 10 and is_text.sum() > 10


def test_item_examples_pair_each_caption_with_the_next(model, pairs):
    fused = FusedEncoder(model, WeightedSum())
    inputs, targets = item_examples(fused, pairs)
    image, text = model.encode_images(pairs.image_paths), model.encode_texts(CAPTIONS)
    # "c" has one caption and is left out.
    assert np.allclose(inputs["image"], image[[0, 0, 1, 1, 1, 3, 3, 3]], atol=1e-6)
    assert np.allclose(inputs["text"], text[[0, 1, 1, 2, 3, 0, 1, 2]], atol=1e-6)
    assert np.allclose(targets, text[[1, 0, 2, 3, 1, 1, 2, 0]], atol=1e-6)
    with pytest.raises(ValueError, match="no image has two captions"):
        item_examples(fused, pairs.subset([2]))


def test_mistakes_are_explained(model, pictures):
    fused = FusedEncoder(model, WeightedSum())
    with pytest.raises(ValueError, match="item 1 has neither an image nor a text"):
        fused.encode_items([[pictures[0]], []], [[], []])
    with pytest.raises(ValueError, match="one list an item; got 1 and 2"):
        fused.encode_items([[]], [["a"], ["b"]])
    with pytest.raises(ValueError, match="the encoder's width, 4; it gives 8"):
        FusedEncoder(model, GatedFusion(8))
    with pytest.raises(ValueError, match="give an imputer to a late fusion"):
        FusedEncoder(model, EarlyFusion(4), imputer=MeanImputer())
    with pytest.raises(ValueError, match="call adapt first"):
        FusedEncoder(model, WeightedSum(), imputer=MeanImputer())
    with pytest.raises(ValueError, match="item_examples takes a late fusion"):
        item_examples(FusedEncoder(model, HybridFusion(4)), None)
