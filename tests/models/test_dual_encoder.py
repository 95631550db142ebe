"""The dual encoder as a Keras model: fit, predict, encode, mixed precision, save and load."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_backbone, make_model, make_text
from PIL import Image

from mmret_tf.models import DualEncoder, image_tower, load_model, text_tower
from mmret_tf.similarity import ContrastiveCosine

GROUPS = np.array([0, 1, 2, 3])


def test_its_parts_have_names(shared_model, text_preprocessor):
    assert shared_model.modalities == ["image", "text"]
    assert shared_model.image_tower is shared_model.towers["image"]
    assert shared_model.text_tower is shared_model.towers["text"]
    assert shared_model.text_preprocessor is text_preprocessor
    assert shared_model.image_size == 16


def test_either_modality_may_be_absent(shared_model, batch):
    both = shared_model(batch)
    assert set(both) == {"image", "text"}
    for name in both:
        alone = shared_model({name: batch[name]})
        assert set(alone) == {name}
        assert np.allclose(alone[name], both[name], atol=1e-6)


def test_predict_gives_unit_rows(shared_model, batch):
    for rows in shared_model.predict(batch, verbose=0).values():
        assert rows.shape == (4, 4) and rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the embeddings have collapsed")  # at first
def test_fit_brings_images_to_their_captions(model, batch):
    pairs = {"image": batch["image"][:2], "text": batch["text"][:2]}
    data = tf.data.Dataset.from_tensors((pairs, np.arange(2)))
    history = model.fit(data, epochs=60, verbose=0).history
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    rows = model(pairs)
    cosines = np.asarray(rows["image"]) @ np.asarray(rows["text"]).T
    assert np.argmax(cosines, axis=0).tolist() == np.argmax(cosines, axis=1).tolist() == [0, 1]


@pytest.mark.filterwarnings("error")
def test_a_dataset_keeps_its_own_order_without_a_warning(model, batch):
    model.run_eagerly = True
    dataset = tf.data.Dataset.from_tensors((batch, GROUPS))
    assert len(model.fit(dataset, verbose=0).history["loss"]) == 1
    assert len(model.fit(x=dataset, verbose=0).history["loss"]) == 1


def test_without_targets_every_row_is_an_item_of_its_own(model, batch):
    model.run_eagerly = True
    with_groups = model.evaluate(batch, GROUPS, verbose=0, return_dict=True)
    without = model.evaluate(batch, verbose=0, return_dict=True)
    assert without["loss"] == pytest.approx(with_groups["loss"], abs=1e-6)


def test_the_temperature_is_learned_and_bounded(model, batch):
    model.run_eagerly = True
    model.fit(batch, GROUPS, verbose=0)
    assert float(model.temperature()) != pytest.approx(0.07)
    model.temperature.log_temperature.assign(-50.0)  # 1e-22, kept at 0.01
    assert np.isfinite(model.evaluate(batch, GROUPS, verbose=0, return_dict=True)["loss"])


def test_callbacks_may_stop_training(model, batch):
    model.run_eagerly = True
    stop = keras.callbacks.EarlyStopping("loss", min_delta=100, patience=1)
    assert len(model.fit(batch, epochs=5, verbose=0, callbacks=stop).history["loss"]) == 2


@pytest.mark.filterwarnings("ignore:the embeddings have collapsed")  # at first
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_and_round_trips(policy, batch, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy("float32")
    losses = model.fit(batch, GROUPS, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert model.image_tower.head.projections[0].compute_dtype == policy.removeprefix("mixed_")
    assert model.temperature.log_temperature.dtype == "float32"

    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == policy
    for name, expected in model(batch).items():
        again = loaded(batch)[name]
        assert again.dtype == "float32" and np.array_equal(again, expected)


def test_jit_compile_trains_alike_or_says_why_not(model, batch):
    """The vocabulary is a look-up table, which XLA cannot compile: Keras says so and goes on."""
    expected = float(model.compute_loss(y=GROUPS, y_pred=model(batch)))
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("adam", loss=ContrastiveCosine(), jit_compile=True)
    assert model.fit(batch, GROUPS, verbose=0).history["loss"] == pytest.approx([expected], 1e-4)


def test_encode_takes_any_kind_of_picture(shared_model, tmp_path):
    picture = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    picture.save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    sources = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
    rows = shared_model.encode_images(sources, batch_size=2)
    assert rows.shape == (5, 4) and np.allclose(rows, rows[0], atol=1e-5)
    stacked = shared_model.encode_images(np.stack([np.asarray(picture)] * 2))
    assert np.allclose(stacked, rows[:2], atol=1e-5)


def test_encode_texts_agrees_with_predict_at_any_batch_size(shared_model, batch):
    expected = shared_model.predict(batch, verbose=0)["text"]
    for batch_size in (1, 3, 64):
        assert np.allclose(shared_model.encode_texts(CAPTIONS, batch_size), expected, atol=1e-6)
    assert np.isfinite(shared_model.encode_texts(["", "unknown words", "圆"])).all()


def test_texts_of_an_item_count_only_where_it_has_no_picture(shared_model, batch):
    pictures = [[each] for each in batch["image"]]
    images, texts = shared_model.encode_images(batch["image"]), shared_model.encode_texts(CAPTIONS)
    found = shared_model.encode_items({"text": [CAPTIONS] * 4, "image": pictures})
    assert np.array_equal(found, images)
    found = shared_model.encode_items({"image": [[], pictures[0]], "text": [CAPTIONS[1:2], []]})
    assert np.allclose(found, [texts[1], images[0]], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_texts("a red circle"), "a list of texts; for one text, give a list"),
        (lambda m: m.encode_texts([1]), "a text must be a string; got 1"),
        (lambda m: m.encode_texts([]), "nothing to encode"),
        (lambda m: m.encode_images("a.png"), "a list of images; for one image, give a list"),
        (lambda m: m.encode_images([]), "nothing to encode"),
        (lambda m: m.encode_images(["gone.png"]), "gone.png: No such file"),
        (lambda m: m.encode_images([b"rubbish"]), "not an image"),
        (lambda m: m.encode("sound", ["a"]), "no tower for 'sound'; it has: image, text"),
    ],
)
def test_mistakes_are_explained(shared_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(shared_model)


def test_towers_must_fit_together(text_preprocessor):
    images = image_tower(make_backbone(), embedding_dim=4)
    with pytest.raises(ValueError, match="same embedding_dim; got {'image': 4, 'text': 8}"):
        DualEncoder(images, text_tower(text_preprocessor, units=8, embedding_dim=8))
    texts = text_tower(text_preprocessor, units=8, embedding_dim=4, members=2)
    with pytest.raises(ValueError, match="same members; got {'image': 1, 'text': 2}"):
        DualEncoder(images, texts)


@pytest.fixture
def ensemble():
    """Two members of width 2."""
    keras.utils.set_random_seed(0)
    images = image_tower(make_backbone(), image_size=16, embedding_dim=4, members=2)
    texts = text_tower(make_text(), word_dim=8, units=8, embedding_dim=4, members=2)
    built = DualEncoder(images, texts)
    built.compile(keras.optimizers.Adam(0.05), loss=ContrastiveCosine(), run_eagerly=True)
    return built


def test_an_ensemble_trains_each_member_by_itself_and_averages_their_cosines(ensemble, batch):
    out = {name: np.asarray(rows) for name, rows in ensemble(batch).items()}
    image, text = (out[name].reshape(4, 2, 2) for name in ("image", "text"))
    assert np.allclose(np.linalg.norm(image, axis=2), 0.5**0.5, atol=1e-5)
    cosines = np.einsum("imd,jmd->mij", image, text) * 2  # of each member
    assert np.allclose(out["image"] @ out["text"].T, cosines.mean(axis=0), atol=1e-5)

    logits = cosines / 0.07
    exact = [
        np.log(np.exp(logits).sum(axis=axis)) - np.diagonal(logits, axis1=1, axis2=2)
        for axis in (1, 2)
    ]
    found = ensemble.compute_loss(batch, GROUPS, ensemble(batch))
    assert float(found) == pytest.approx(np.mean(exact), rel=1e-4)


def test_an_ensemble_learns_and_round_trips(ensemble, batch, tmp_path):
    history = ensemble.fit(batch, GROUPS, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.1
    ensemble.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.members == 2 and type(loaded) is DualEncoder
    for name, rows in ensemble(batch).items():
        assert np.array_equal(loaded(batch)[name], rows)


def test_keras_loads_a_model_in_a_fresh_process_once_the_package_is_imported(
    shared_model, batch, tmp_path
):
    """`mm.load_model` does so in `test_cli.py`."""
    shared_model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", batch["image"])
    script = (
        "import sys, keras, numpy as np, mmret_tf\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "images = np.load(sys.argv[1] + '/images.npy')\n"
        f"rows = [model.encode_images(images), model.encode_texts({CAPTIONS!r})]\n"
        "np.save(sys.argv[1] + '/rows.npy', rows)\n"
        "print(model.fingerprint)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.split()[-1] == shared_model.fingerprint
    images, texts = np.load(tmp_path / "rows.npy")
    assert np.allclose(images, shared_model.encode_images(batch["image"]), atol=1e-6)
    assert np.allclose(texts, shared_model.encode_texts(CAPTIONS), atol=1e-6)


FIT_ON_TWO_REPLICAS = """
import contextlib
import keras
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from conftest import CAPTIONS, make_model
from mmret_tf.similarity import ContrastiveCosine
from mmret_tf.similarity.replicas import gather_replicas
strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
images = np.random.default_rng(0).integers(0, 255, (13, 16, 16, 3), dtype="uint8")
class OneNumber(ContrastiveCosine):
    def call(self, y_true, y_pred):
        return keras.ops.mean(super().call(y_true, y_pred))
def fitted(made_in, fitted_in, loss=None):
    with made_in:
        model = make_model()
        model.compile(keras.optimizers.SGD(0.02), loss or model.loss)
    captions = [CAPTIONS[row % 4] for row in range(13)]
    inputs = {"image": images, "text": model.text_preprocessor(captions)}
    data = tf.data.Dataset.from_tensor_slices((inputs, np.arange(13) % 5))
    with fitted_in:  # 8 rows, then 5: the replicas have 3 and 2
        history = model.fit(data.batch(8), epochs=4, verbose=0).history
    return np.concatenate([history["loss"], *map(np.ravel, model.get_weights())])
anywhere = contextlib.nullcontext()
alone = fitted(anywhere, anywhere)
outside = fitted(strategy.scope(), anywhere)
inside = fitted(strategy.scope(), strategy.scope())
number = fitted(strategy.scope(), anywhere, OneNumber())
def ids():
    place = tf.distribute.get_replica_context().replica_id_in_sync_group
    return gather_replicas((tf.constant(["a", "b", "a"])[: 2 + place], None))[0]
gathered = strategy.run(tf.function(ids)).values[1].numpy()  # a b, then a b a
assert len(gathered) == 5 and len(set(gathered)) == 2 and gathered[0] == gathered[2] == gathered[4]
print(*(abs(each - alone).max() for each in (outside, inside, number)), abs(alone[-50:]).max())
"""


def test_a_batch_that_is_spread_over_replicas_trains_as_one():
    """With `fit` outside the strategy's scope and inside it, to the weights of one device: the
    negatives are those of the whole batch. In a process of its own, because TensorFlow fixes the
    number of devices when it starts."""
    folders = [str(Path(__file__).parents[depth]) for depth in (1, 2)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", FIT_ON_TWO_REPLICAS]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    *differences, largest = map(float, said.stdout.split()[-4:])
    assert max(differences) < 1e-5 < 1e-2 < largest


def test_training_resumes_after_loading(model, batch, tmp_path):
    model.compile(model.optimizer, model.loss, run_eagerly=True)
    model.fit(batch, GROUPS, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 2
    first = model.fit(batch, GROUPS, epochs=2, verbose=0, shuffle=False).history["loss"]
    again = loaded.fit(batch, GROUPS, epochs=2, verbose=0, shuffle=False).history["loss"]
    assert first == pytest.approx(again, abs=1e-5)


def test_every_weight_is_saved_once(shared_model, tmp_path):
    shared_model.save_weights(tmp_path / "model.weights.h5")
    sizes = {}
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda name, each: sizes.update({name: getattr(each, "size", 0)}))
    weights = [size for name, size in sizes.items() if not name.startswith("optimizer")]
    assert sum(weights) == shared_model.count_params()


def test_it_can_be_summarised(shared_model, capsys):
    shared_model.summary()
    assert "text_tower" in capsys.readouterr().out


def test_load_model_refuses_other_models(tmp_path):
    make_backbone().save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="other.keras holds a Functional, not a MultiEncoder"):
        load_model(tmp_path / "other.keras")


def test_a_constant_minimises_the_cosine_of_matching_pairs():
    """Why every loss needs negatives: the loss printed in section 5 is best served by constants."""
    constant = np.tile([[1.0, 0]], (4, 1))
    assert float(keras.losses.CosineSimilarity()(constant, constant)) == pytest.approx(-1)
    rows = {"image": constant, "text": constant}
    assert float(ContrastiveCosine(temperature=0.07)(GROUPS, rows)) == pytest.approx(np.log(4))
