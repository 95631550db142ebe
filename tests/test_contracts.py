"""Keras' contracts, held by every registered class: precision, shapes, serialization, export."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_backbone, make_model, make_text
from keras import ops

import mmret_tf as mm
from mmret_tf.fusion.missing import ModalityDropout
from mmret_tf.models.fine_tuning import TwoRateAdam
from mmret_tf.models.layers import MaskedPooling, Temperature, TransformerEncoder
from mmret_tf.models.towers.audio import LogPower
from mmret_tf.models.towers.head import Head
from mmret_tf.models.towers.recurrence import LSTM
from mmret_tf.models.towers.video import FramesHead
from mmret_tf.similarity import losses

POLICIES = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")  # all else runs in float32


def rows(*shape, seed=0):
    """Numbers of unit length along the last axis, float32."""
    values = np.random.default_rng(seed).normal(size=shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


PAIR = {"image": rows(4, 8), "text": rows(4, 8, seed=1)}
SEQUENCES = {"image": rows(4, 3, 8), "text": rows(4, 5, 8, seed=1)}
SCORES = {"image": rows(3, 6), "text": rows(3, 6, seed=1)}


def adapted(imputer):
    imputer.adapt(PAIR)
    return imputer


def started(imputer):
    """With weights, but without training."""
    imputer.start({name: values.shape for name, values in PAIR.items()})
    return imputer


def halves():
    return {name: keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)]) for name in PAIR}


# By registered name: a function that makes the layer, and its inputs.
LAYERS = {
    "MaskedPooling": (lambda: MaskedPooling("max"), SEQUENCES["image"]),
    "TransformerEncoder": (lambda: TransformerEncoder(8), SEQUENCES["image"]),
    # Keras' default, Orthogonal, knows no bfloat16.
    "LSTM": (lambda: LSTM(8, recurrent_initializer="glorot_uniform"), SEQUENCES["text"]),
    "Head": (lambda: Head(8, 4, normalize=True, members=2), PAIR["image"]),
    "FramesHead": (lambda: FramesHead(2, 8, width=8, embedding_dim=4), PAIR["image"]),
    "LogPower": (LogPower, SEQUENCES["image"]),
    "Concatenate": (lambda: mm.fusion.Concatenate(8), PAIR),
    "WeightedSum": (lambda: mm.fusion.WeightedSum(learned=True), PAIR),
    "GatedFusion": (lambda: mm.fusion.GatedFusion(8), PAIR),
    "EnsembleFusion": (lambda: mm.fusion.EnsembleFusion(halves()), PAIR),
    "EarlyFusion": (lambda: mm.fusion.EarlyFusion(8, units=8), SEQUENCES),
    "HybridFusion": (lambda: mm.fusion.HybridFusion(8), SEQUENCES),
    "CrossAttentionMatch": (mm.fusion.CrossAttentionMatch, [*SEQUENCES.values()]),
    "PartReader": (lambda: mm.fusion.PartReader(8, is_ordered=False), SEQUENCES["image"]),
    "ModalityDropout": (lambda: ModalityDropout(0.5), PAIR),
    "ConstantImputer": (lambda: mm.fusion.ConstantImputer(0.5), PAIR),
    "MeanImputer": (lambda: adapted(mm.fusion.MeanImputer()), PAIR),
    "NearestImputer": (lambda: adapted(mm.fusion.NearestImputer(2)), PAIR),
    "ModalityPredictor": (lambda: started(mm.fusion.ModalityPredictor(8)), PAIR),
    "WeightedScores": (lambda: mm.fusion.WeightedScores(), SCORES),
    "ReciprocalRankFusion": (lambda: mm.fusion.ReciprocalRankFusion(), SCORES),
    "TextPreprocessor": (make_text, np.array(["a red circle", "圆"])),
    "Temperature": (Temperature, None),
}
# Of one precision, or with layers that are given from outside.
FIXED = ("Temperature", "TextPreprocessor", "EnsembleFusion")
LOSSES = {
    "CosineSimilarityLoss": losses.CosineSimilarityLoss(0.1),
    "ContrastiveCosine": losses.ContrastiveCosine(0.1),
    "TripletCosine": losses.TripletCosine(negatives="hardest"),
    "EuclideanContrastive": losses.EuclideanContrastive(),
    "ContrastiveTargets": losses.ContrastiveTargets(0.1),
}
MODELS = ("DualEncoder", "MultiEncoder", "ImageTower", "TextTower", "FusedEncoder")
MODELS += ("AudioTower", "VideoTower", "MultimodalRetrievalModel", "Reranker")
OTHERS = {"TwoRateAdam"}
OTHERS |= {"HubImageTower", "HubTextTower", "HubTextPreprocessor"}  # see tests/models/hub

every_layer = pytest.mark.parametrize("name", LAYERS)
every_loss = pytest.mark.parametrize("name", LOSSES)
every_model = pytest.mark.parametrize("name", MODELS)


def test_every_registered_class_is_held_to_them():
    registered = keras.saving.get_custom_objects()
    names = {name.removeprefix("mmret_tf>") for name in registered if name.startswith("mmret_tf>")}
    own = {
        name for name in names if registered[f"mmret_tf>{name}"].__module__.startswith("mmret_tf")
    }
    assert own == {*LAYERS, *LOSSES, *MODELS, *OTHERS}


@pytest.fixture(params=POLICIES)
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def flat(outputs):
    return keras.tree.flatten(outputs)


@every_layer
def test_layers_compute_alike_eagerly_in_a_graph_and_symbolically(name, policy):
    make, inputs = LAYERS[name]
    layer = make()
    arguments = () if inputs is None else (inputs,)
    eager, graph = layer(*arguments), tf.function(layer)(*arguments)
    for one, other in zip(flat(eager), flat(graph), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if one.dtype.is_floating:
            assert np.isfinite(tf.cast(one, tf.float32)).all()
    if inputs is None:
        return
    kind = "string" if name == "TextPreprocessor" else "float32"
    symbols = keras.tree.map_structure(
        lambda each: keras.KerasTensor((None, *each.shape[1:]), kind), inputs
    )
    symbolic = make().compute_output_spec(symbols)
    for one, other in zip(flat(eager), flat(symbolic), strict=True):
        assert keras.backend.standardize_dtype(one.dtype) == other.dtype
        # The second axis of a match is a batch as well.
        assert other.shape[1:] == ((None,) if name == "CrossAttentionMatch" else one.shape[1:])


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in FIXED])
def test_inner_layers_follow_the_policy_of_their_layer(name):
    """A layer of its own precision, made under the global float32."""
    make, inputs = LAYERS[name]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = make()
    keras.config.set_dtype_policy(before)
    layer(inputs)
    policies = {each.dtype_policy.name for each in layer._flatten_layers() if each.weights}
    assert policies <= {"mixed_bfloat16"}
    again = type(layer).from_config(layer.get_config())
    assert again.dtype_policy.name == "mixed_bfloat16"


@every_layer
def test_layers_come_back_from_their_configuration(name):
    layer = LAYERS[name][0]()
    stored = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(stored)
    assert type(again) is type(layer) and again.name == layer.name
    assert keras.saving.serialize_keras_object(again)["config"] == stored["config"]


@pytest.mark.parametrize("imputer", ["MeanImputer", "NearestImputer", "ModalityPredictor"])
def test_imputers_come_back_before_they_are_adapted(imputer):
    layer = getattr(mm.fusion, imputer)(name="m")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.name == "m" and not again.built


@every_loss
def test_losses_take_keras_arguments_and_come_back(name):
    given = type(LOSSES[name])(name="n", reduction="sum", dtype="float32")
    assert (given.name, given.reduction, given.dtype) == ("n", "sum", "float32")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(given))
    assert again.get_config() == given.get_config()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ContrastiveTargets"])
@pytest.mark.parametrize(
    "ids",
    [
        [2**24, 2**24 + 1, 2**24, 2**24 + 3],
        [1000268201, 1000268202, 1000268201, 1000268204],
        ["a", "b", "a", "狗"],
        [[7], [8], [7], [9]],
    ],
    ids=["above 2**24", "of a database", "strings", "a column"],
)
def test_group_ids_may_be_anything_that_can_be_equal(name, ids):
    loss = LOSSES[name]
    assert np.isclose(loss(np.array(ids), PAIR), loss(np.array([0, 1, 0, 3]), PAIR))


def make(name):
    """A model of each class, and inputs of eight rows."""
    encoder = make_model()
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    tokens = encoder.text_preprocessor(["a red circle", "圆"] * 4).numpy()
    both = {"image": images, "text": tokens}
    if name == "DualEncoder":
        return encoder, both
    if name == "MultiEncoder":
        return mm.MultiEncoder([encoder.image_tower, encoder.text_tower]), both
    if name == "ImageTower":
        return encoder.image_tower, images
    if name == "TextTower":
        return encoder.text_tower, tokens
    if name == "AudioTower":
        return mm.audio_tower(rate=4000, seconds=0.25, embedding_dim=4), rows(8, 1000)
    if name == "VideoTower":
        tower = mm.video_tower(make_backbone(), frames=2, image_size=16, embedding_dim=4)
        return tower, np.stack([images, images[::-1]], axis=1)
    if name == "FusedEncoder":
        fused = mm.FusedEncoder(encoder, mm.fusion.GatedFusion(4))
        return fused, {"image": rows(8, 4), "text": rows(8, 4, seed=1)}
    if name == "Reranker":
        return mm.Reranker(encoder, dim=8), both
    networks = (
        keras.Sequential([keras.Input((16, 16, 3)), keras.layers.GlobalAveragePooling2D()]),
        keras.Sequential([keras.Input((6,)), keras.layers.Embedding(50, 4), keras.layers.LSTM(4)]),
    )
    return mm.MultimodalRetrievalModel(*networks), both


@every_model
def test_models_are_exported_without_a_call_and_compute_the_same(name, tmp_path, capsys):
    model, inputs = make(name)
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    specs = model.input_specs()
    whole = keras.tree.map_structure(lambda each, spec: tf.cast(each, spec.dtype), inputs, specs)
    for count in (1, 8):
        some = keras.tree.map_structure(lambda each: each[:count], whole)  # noqa: B023
        for one, other in zip(flat(loaded.serve(some)), flat(model(some)), strict=True):
            assert np.allclose(one, other, atol=1e-5)


@every_model
def test_models_are_saved_as_keras_files_alone_and_never_quantized(name, tmp_path):
    model, inputs = make(name)
    for file in ("model.h5", "model", "model.tf"):
        with pytest.raises(ValueError, match="ends in .keras"):
            model.save(tmp_path / file)
    with pytest.raises(ValueError, match="use compress_image_tower"):
        model.quantize("int8")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(flat(loaded(inputs)), flat(model(inputs)), strict=True):
        assert np.allclose(one, other, atol=1e-6)


@every_model
def test_checkpoints_of_tensorflow_hold_all_weights(name, tmp_path):
    model, inputs = make(name)
    expected = [np.asarray(each) for each in flat(model(inputs))]
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "c"))
    for weight in model.weights:
        if weight.dtype.startswith("float"):
            weight.assign(ops.zeros_like(weight))
    tf.train.Checkpoint(model=model).restore(path)
    for one, other in zip(flat(model(inputs)), expected, strict=True):
        assert np.allclose(one, other, atol=1e-6)


def test_losses_follow_keras_compile():
    model, inputs = make("DualEncoder")
    loss, groups = losses.ContrastiveCosine(0.1), np.arange(8)

    def value(**settings):
        model.compile("adam", **settings)
        return model.evaluate(inputs, groups, verbose=0, return_dict=True)["loss"]

    once = value(loss=loss)
    assert value(loss=lambda y_true, y_pred: loss(y_true, y_pred)) == pytest.approx(once)
    assert value(loss=loss, loss_weights=3.0) == pytest.approx(3 * once)
    model.compile("adam", lambda y_true, y_pred: loss(y_true, y_pred))
    with pytest.raises(ValueError, match="sample weights need a keras.losses.Loss"):
        model.evaluate(inputs, groups, sample_weight=np.ones(8), verbose=0)
    for wrong in ({"loss": [loss, loss]}, {"loss": loss, "loss_weights": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="one loss.*loss_weights as a number"):
            value(**wrong)


def test_the_optimizer_scales_the_rate_of_its_slow_variables():
    config = TwoRateAdam(0.1, slow=[1], slow_share=0.1).get_config()
    assert TwoRateAdam.from_config(config).get_config() == config


@every_model
def test_models_are_saved_and_loaded_without_tracing_a_graph(name, tmp_path, monkeypatch):
    """Keras reads every attribute of a layer when it saves or loads it, properties included."""
    model, _ = make(name)
    traced = []
    start = tf.__internal__.FuncGraph.__init__

    def note(graph, name, *args, **kwargs):
        traced.append(name)
        start(graph, name, *args, **kwargs)

    monkeypatch.setattr(tf.__internal__.FuncGraph, "__init__", note)
    model.save(tmp_path / "model.keras")
    keras.saving.load_model(tmp_path / "model.keras")
    # Keras traces layers of functional models in scratch graphs.
    assert not [name for name in traced if not name.startswith("scratch_graph")]
