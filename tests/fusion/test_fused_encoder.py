"""The fused encoder: features, one embedding an item, any modalities, training, saving, graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_model

from mmret_tf.data.collection import Collection
from mmret_tf.data.modalities import MODALITIES, Modality
from mmret_tf.data.pairs import Pairs
from mmret_tf.fusion import (
    Concatenate,
    EarlyFusion,
    EnsembleFusion,
    FusedEncoder,
    GatedFusion,
    HybridFusion,
    MeanImputer,
    ModalityPredictor,
    WeightedSum,
    item_examples,
    load_fused_encoder,
)
from mmret_tf.models import Encoder, Head, MultiEncoder, Tower
from mmret_tf.similarity import ContrastiveTargets

FUSIONS = {
    "weighted sum": lambda: WeightedSum({"image": 0.3, "text": 0.7}),
    "gated": lambda: GatedFusion(4),
    "early": lambda: EarlyFusion(4, units=8),
    "hybrid": lambda: HybridFusion(4, heads=2),
}
every_fusion = pytest.mark.parametrize("name", FUSIONS)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def encoder():
    """Frozen by the first fused encoder, and never changed by the others."""
    return make_model()


@pytest.fixture(scope="module")
def fused(encoder):
    """A fused encoder of each fusion: not to be trained."""
    keras.utils.set_random_seed(0)
    return {name: FusedEncoder(encoder, make()) for name, make in FUSIONS.items()}


@pytest.fixture(scope="module")
def image(encoder, picture_files):
    """Embeddings of the pictures."""
    return encoder.encode_images(picture_files)


@pytest.fixture(scope="module")
def text(encoder):
    """Embeddings of the captions."""
    return encoder.encode_texts(CAPTIONS)


@pytest.fixture(scope="module")
def items(picture_files):
    """Four items of one picture and one caption."""
    return {"image": [[path] for path in picture_files], "text": [[each] for each in CAPTIONS]}


@pytest.fixture(scope="module")
def features(fused, items):
    """Features of the four items for each fusion."""
    late, joint = fused["gated"].features(items), fused["early"].features(items)
    return {name: joint if each.fusion.takes_sequences else late for name, each in fused.items()}


def test_it_is_an_encoder_of_the_same_space(encoder, fused, image, text):
    one = fused["gated"]
    assert isinstance(one, Encoder) and isinstance(one, keras.Model)
    assert one.fingerprint == encoder.fingerprint and one.form == "float32"
    assert one.modalities == ["image", "text"] and one.towers is encoder.towers
    assert np.array_equal(one.encode("text", CAPTIONS), text)
    assert not encoder.trainable and not encoder.compiled
    # The towers' weights count once.
    assert one.count_params() == encoder.count_params() + one.fusion.count_params()


def test_features_of_late_fusions_are_mean_embeddings(fused, picture_files, image, text):
    features = fused["gated"].features(
        {
            "image": [picture_files[:2], [], [picture_files[3]]],
            "text": [["a red circle"], ["红色的圆", "a blue square"], []],
        }
    )
    nothing = np.zeros(4)
    expected = [unit(image[0] + image[1]), nothing, image[3]]
    assert np.allclose(features["image"], expected, atol=1e-6)
    expected = [text[0], unit(text[2] + text[1]), nothing]
    assert np.allclose(features["text"], expected, atol=1e-6)


def test_features_of_joint_fusions_are_regions_and_words(encoder, fused, picture_files, batch):
    features = fused["early"].features(
        {"image": [picture_files[:2], [], [picture_files[3]]], "text": [["circle red"], ["红"], []]}
    )
    # The backbone makes 7 x 7 regions of 8 numbers from 16 x 16 pixels.
    assert features["image"].shape == (3, 2 * 49, 8)
    assert np.array_equal(features["image"][1], np.zeros((98, 8)))
    regions = features["image"][2]
    assert not regions[49:].any()
    pooled = encoder.image_tower.features(batch["image"][3:]).numpy()[0]
    assert np.allclose(regions[:49].mean(axis=0), pooled, atol=1e-4)

    words = encoder.text_tower.words.get_weights()[0]
    ids = encoder.text_preprocessor(["circle red"]).numpy()[0]
    assert features["text"].shape == (3, 2, 8)  # as long as the longest text
    assert np.allclose(features["text"][0], words[ids[:2]], atol=1e-6)
    assert features["text"][1, 0].any() and not features["text"][1, 1].any()


@pytest.mark.parametrize("name", ["gated", "hybrid"])
def test_a_modality_may_be_absent_from_all_items(name, fused, picture_files):
    asked = {"image": [[], []], "text": [["a red circle"], ["红"]]}
    both = fused[name].encode_items(asked)
    assert np.allclose(fused[name].encode_items({"text": asked["text"]}), both, atol=1e-6)
    assert np.allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    assert fused[name].encode_items({"image": [[picture_files[0]]], "text": [[]]}).shape == (1, 4)
    assert fused[name].encode_items({"image": [], "text": []}).shape == (0, 4)


def test_the_weighted_sum_of_one_modality_is_its_embedding(fused, picture_files, image, text):
    embeddings = fused["weighted sum"].encode_items(
        {
            "image": [[picture_files[0]], [], [picture_files[1]]],
            "text": [[], ["红色的圆"], ["a red circle"]],
        }
    )
    expected = [image[0], text[2], unit(0.3 * image[1] + 0.7 * text[0])]
    assert np.allclose(embeddings, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["gated", "early"])
def test_a_graph_from_encoded_sources_gives_the_same_embeddings(
    name, encoder, fused, items, picture_files
):
    """As an exported graph computes them: strings in, one source a row."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def embed(image, text):
        sources = {"image": image, "text": text}
        towers = encoder.towers
        inputs = {modality: towers[modality].preprocess(each) for modality, each in sources.items()}
        return fused[name].fuse_inputs(inputs)

    contents = tf.constant([path.read_bytes() for path in picture_files])
    embeddings = embed(contents, tf.constant(CAPTIONS)).numpy()
    assert np.allclose(embeddings, fused[name].encode_items(items), atol=1e-5)


@every_fusion
def test_a_saved_encoder_gives_the_same_embeddings(name, fused, features, tmp_path):
    fused[name].save(tmp_path / "fused.keras")
    loaded = load_fused_encoder(tmp_path / "fused.keras")
    assert not loaded.encoder.trainable
    assert (loaded.fingerprint, loaded.recipe) == (fused[name].fingerprint, fused[name].recipe)
    assert np.allclose(loaded(features[name]), fused[name](features[name]), atol=1e-6)


def test_the_imputer_and_the_dropout_are_saved_with_it(encoder, picture_files, tmp_path):
    imputer = ModalityPredictor(units=8)
    imputer.start({"image": (1, 4), "text": (1, 4)})
    fused = FusedEncoder(encoder, Concatenate(4), imputer, modality_dropout=0.25)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")  # in safe mode
    assert loaded.dropout.rate == 0.25 and loaded.recipe == fused.recipe
    items = {"image": [[picture_files[0]], []], "text": [[], ["a red circle"]]}
    assert np.allclose(loaded.encode_items(items), fused.encode_items(items), atol=1e-6)


def test_the_recipe_follows_from_weights_and_settings_alone(encoder):
    def head():
        return keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(2.0)])

    def recipe(fusion, imputer=None):
        return FusedEncoder(encoder, fusion, imputer).recipe

    imputer = MeanImputer()
    imputer.adapt({"image": np.ones((1, 4)), "text": np.ones((1, 4))})
    plain = recipe(WeightedSum())
    assert plain == recipe(WeightedSum(name="another"))  # a name decides nothing
    others = {
        recipe(WeightedSum({"image": 1.0, "text": 2.0})),
        recipe(WeightedSum(learned=True)),
        recipe(WeightedSum(), imputer),
        recipe(Concatenate(4)),
        recipe(EnsembleFusion({"image": head(), "text": head()})),
    }
    assert len(others) == 5 and plain not in others


def test_an_imputer_fills_in_before_the_fusion(encoder, picture_files, image):
    imputer = MeanImputer()
    imputer.adapt({"image": np.array([[1.0, 2, 3, 4]]), "text": np.array([[0.5, 0, 0, 0]])})
    fused = FusedEncoder(encoder, WeightedSum(), imputer)
    [embedding] = fused.encode_items({"image": [[picture_files[0]]], "text": [[]]})
    assert np.allclose(embedding, unit(image[0] + [0.5, 0, 0, 0]), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("gated", keras.losses.CosineSimilarity()),  # the document's
        ("early", ContrastiveTargets(0.2)),
        ("hybrid", ContrastiveTargets(0.2)),
    ],
)
def test_it_learns_with_fit_and_the_towers_stay(name, loss, encoder, features):
    """Each item has to reach a direction of its own."""
    weights, targets = encoder.get_weights(), np.eye(4, dtype=np.float32)
    keras.utils.set_random_seed(0)
    fused = FusedEncoder(encoder, FUSIONS[name]())
    before = float(loss(targets, fused(features[name])))
    fused.compile(keras.optimizers.SGD(0.5), loss)
    steps = tf.data.Dataset.from_tensors((features[name], targets)).repeat(60)
    fused.fit(steps, shuffle=False, verbose=0)
    assert float(loss(targets, fused(features[name]))) < before - 0.2
    assert all(np.array_equal(*pair) for pair in zip(weights, encoder.get_weights(), strict=True))


def test_modality_dropout_hides_in_training_only(encoder, image, text):
    keras.utils.set_random_seed(0)
    fused = FusedEncoder(encoder, WeightedSum(), modality_dropout=0.9)
    inputs = {"image": np.tile(image[:1], (50, 1)), "text": np.tile(text[1:2], (50, 1))}
    both = fused(inputs).numpy()
    assert np.allclose(both, unit(image[0] + text[1]), atol=1e-6)
    trained = fused(inputs, training=True).numpy()
    is_image = np.isclose(trained, inputs["image"], atol=1e-5).all(axis=1)
    is_text = np.isclose(trained, inputs["text"], atol=1e-5).all(axis=1)
    assert is_image.sum() > 10 and is_text.sum() > 10


def test_item_examples_pair_each_caption_with_the_next(fused, picture_files, image, text):
    captions = [CAPTIONS[:2], CAPTIONS[1:], CAPTIONS[3:], CAPTIONS[:3]]
    sources = {"image": [[path] for path in picture_files], "text": captions}
    pairs = Pairs(list("abcd"), sources)
    inputs, targets = item_examples(fused["weighted sum"], pairs)
    # "c" has one caption and is left out.
    assert np.allclose(inputs["image"], image[[0, 0, 1, 1, 1, 3, 3, 3]], atol=1e-6)
    assert np.allclose(inputs["text"], text[[0, 1, 1, 2, 3, 0, 1, 2]], atol=1e-6)
    assert np.allclose(targets, text[[1, 0, 2, 3, 1, 1, 2, 0]], atol=1e-6)
    with pytest.raises(ValueError, match="no image has two sources of text"):
        item_examples(fused["gated"], pairs.subset([2]))

    backwards = Collection(["a"], {"text": [["a red circle"]], "image": [picture_files[:2]]})
    inputs, targets = item_examples(fused["gated"], backwards.pairs("text", "image"))
    assert np.allclose(inputs["text"], text[[0, 0]], atol=1e-6)
    assert np.allclose(inputs["image"], image[:2], atol=1e-6)
    assert np.allclose(targets, image[[1, 0]], atol=1e-6)


def test_mistakes_are_explained(encoder, fused, picture_files, tmp_path):
    late = fused["weighted sum"]
    with pytest.raises(ValueError, match="item 1 has no image or text"):
        late.encode_items({"image": [[picture_files[0]], []], "text": [[], []]})
    with pytest.raises(ValueError, match="item 0 has no image or text"):
        late.encode_items({"sound": [["a.wav"]]})
    with pytest.raises(ValueError, match="one list an item; got {'image': 1, 'text': 2}"):
        late.encode_items({"image": [[]], "text": [["a"], ["b"]]})
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for each in (late, fused["early"]):
        with pytest.raises(ValueError, match="broken.png"):
            each.encode_items({"image": [[tmp_path / "broken.png"]]})
    with pytest.raises(ValueError, match="the encoder's width, 4; it returns 8"):
        FusedEncoder(encoder, GatedFusion(8))
    with pytest.raises(ValueError, match="give imputers to late fusions only"):
        FusedEncoder(encoder, EarlyFusion(4, units=8), imputer=MeanImputer())
    with pytest.raises(ValueError, match="call adapt with complete rows first"):
        FusedEncoder(encoder, WeightedSum(), imputer=MeanImputer())
    with pytest.raises(ValueError, match="give an encoder with a late fusion"):
        item_examples(fused["hybrid"], None)
    encoder.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="holds a DualEncoder, not a FusedEncoder"):
        load_fused_encoder(tmp_path / "model.keras")


class LevelTower(Tower):
    """Levels, such as "2 0 3": a vector each; 0 is masked though its vector is not zeros."""

    modality = "level"

    def preprocess(self, sources):
        levels = tf.strings.to_number(tf.strings.split(sources).to_tensor("0"), tf.int32)
        return tf.ensure_shape(levels, [None, None])

    def features(self, inputs, training=False):
        return tf.reduce_sum(tf.one_hot(inputs, 5), axis=1)

    def sequence(self, inputs):
        return tf.one_hot(inputs, 5), inputs > 0


@pytest.fixture
def three(encoder, monkeypatch):
    """An encoder of images, texts and levels."""
    monkeypatch.setitem(
        MODALITIES, "level", Modality("level", (".level",), check=int, thumbnail=None)
    )
    return MultiEncoder([*encoder.towers.values(), LevelTower(Head(5, 4))])


def test_it_fuses_any_modalities(three, picture_files):
    late = FusedEncoder(three, WeightedSum())
    assert late.modalities == ["image", "text", "level"]
    levels = [[b"2"], [b"1 3", b"4"]]
    items = {"image": [[picture_files[0]], []], "text": [["红"], []], "level": levels}
    image, text = three.encode("image", [picture_files[0]])[0], three.encode("text", ["红"])[0]
    level = three.encode("level", [b"2", b"1 3", b"4"])
    expected = [unit(image + text + level[0]), unit(level[1] + level[2])]
    assert np.allclose(late.encode_items(items), expected, atol=1e-6)

    early = FusedEncoder(three, EarlyFusion(4, units=8))
    # The width comes from the tower's graph, and lengths may differ.
    assert early.fusion.widths == {"image": 8, "level": 5, "text": 8}
    features = early.features({"level": [[b"2 0 3"], [b"4", b"1"], [b"0"]], "text": [["红"]] * 3})
    a, b, c, d = np.eye(5, dtype=np.float32)[1:]
    nothing = np.zeros(5)
    assert np.array_equal(features["level"][0], [b, nothing, c])
    assert np.array_equal(features["level"][1], [d, a, nothing])
    assert not features["level"][2].any()


def test_a_tower_without_a_sequence_needs_a_late_fusion(three, monkeypatch):
    monkeypatch.delattr(LevelTower, "sequence")
    with pytest.raises(ValueError, match="^LevelTower has no sequence: use a late fusion"):
        FusedEncoder(three, HybridFusion(4))
