"""The dual encoder as a Keras model: fit, predict, encode, save, and its alarm."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_backbone
from PIL import Image

from mmret_tf import losses
from mmret_tf.dual_encoder import COLLAPSED, DualEncoder, load_model
from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.towers import image_tower, text_tower

GROUPS = np.array([0, 1, 2, 3])


def test_either_modality_may_be_absent(model, batch):
    both = model(batch)
    assert set(both) == {"image", "text"}
    for name in both:
        alone = model({name: batch[name]})
        assert set(alone) == {name}
        assert np.allclose(alone[name], both[name], atol=1e-6)
    with pytest.raises(ValueError, match='a dict of "image" and "text"'):
        model({"picture": batch["image"]})


def test_predict_gives_unit_rows(model, batch):
    out = model.predict(batch, verbose=0)
    for rows in out.values():
        assert rows.shape == (4, 4) and rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_fit_brings_images_to_their_captions(model, batch):
    # Two pictures of each colour, with the English and the Chinese caption of it.
    pairs = {"image": batch["image"][[0, 1]], "text": batch["text"][[0, 1]]}
    history = model.fit(
        pairs, np.arange(2), epochs=60, verbose=0, validation_data=(pairs, np.arange(2))
    ).history
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    assert history["val_loss"][-1] < 0.1
    metrics = evaluate_retrieval(*model.predict(pairs, verbose=0).values(), [0, 1])
    assert metrics["t2i_R@1"] == metrics["i2t_R@1"] == 1


@pytest.mark.filterwarnings("error")
def test_a_dataset_keeps_its_own_order_without_a_warning(model, batch):
    dataset = tf.data.Dataset.from_tensors((batch, np.arange(4)))
    assert len(model.fit(dataset, verbose=0).history["loss"]) == 1
    assert len(model.fit(x=dataset, verbose=0).history["loss"]) == 1


@pytest.mark.parametrize(
    "loss",
    [
        losses.CosineSimilarityLoss(),
        losses.ContrastiveCosine(),
        losses.TripletCosine(),
        losses.EuclideanContrastive(),
    ],
    ids=lambda loss: loss.name,
)
def test_the_loss_of_a_step_is_the_loss_of_its_embeddings(model, batch, loss):
    model.compile("sgd", loss=loss)
    embeddings = model.predict(batch, verbose=0)
    embeddings["temperature"] = np.exp(model.log_temperature.numpy())
    expected = float(loss(GROUPS, embeddings))
    got = model.evaluate(batch, GROUPS, verbose=0, return_dict=True)
    assert got["loss"] == pytest.approx(expected, abs=1e-5)


def test_without_targets_every_row_is_its_own_group(model, batch):
    with_groups = model.evaluate(batch, GROUPS, verbose=0, return_dict=True)
    without = model.evaluate(batch, verbose=0, return_dict=True)
    assert without["loss"] == pytest.approx(with_groups["loss"], abs=1e-6)


def test_the_temperature_is_learned_and_bounded(model, batch):
    before = float(model.log_temperature)
    model.fit(batch, GROUPS, epochs=3, verbose=0)
    assert float(model.log_temperature) != before
    model.log_temperature.assign(-50.0)  # 1e-22, clipped to 0.01
    assert np.isfinite(model.evaluate(batch, GROUPS, verbose=0, return_dict=True)["loss"])


def test_callbacks_and_mixed_precision(text_preprocessor, batch):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        images = image_tower(make_backbone(), image_size=16, embedding_dim=4, trainable=True)
        model = DualEncoder(images, text_tower(50, units=8, embedding_dim=4), text_preprocessor)
        model.compile("adam", loss=losses.ContrastiveCosine())
        stop = keras.callbacks.EarlyStopping("loss", min_delta=100, patience=1)
        history = model.fit(batch, GROUPS, epochs=5, verbose=0, callbacks=[stop]).history
        assert len(history["loss"]) == 2 and np.isfinite(history["loss"]).all()
        assert model.predict(batch, verbose=0)["image"].dtype == np.float32
    finally:
        keras.config.set_dtype_policy("float32")


def test_jit_compile_trains_alike_or_says_why_not(model, batch):
    """The vocabulary is a look-up table, which XLA cannot compile: Keras says so and goes on."""
    expected = model.evaluate(batch, GROUPS, verbose=0, return_dict=True)["loss"]
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("adam", loss=losses.ContrastiveCosine(), jit_compile=True)
    assert model.fit(batch, GROUPS, verbose=0).history["loss"] == pytest.approx([expected], 1e-4)


def test_encode_takes_any_kind_of_picture(model, tmp_path):
    picture = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    picture.save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    sources = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
    rows = model.encode_images(sources, batch_size=2)
    assert rows.shape == (5, 4) and np.allclose(rows, rows[0], atol=1e-5)
    stacked = model.encode_images(np.stack([np.asarray(picture)] * 2))
    assert np.allclose(stacked, rows[:2], atol=1e-5)
    features = np.asarray(model.image_tower.features(np.asarray(picture)[None]))
    assert np.allclose(model.encode_images(features), rows[:1], atol=1e-5)


def test_encode_texts_agrees_with_predict_at_any_batch_size(model, batch):
    expected = model.predict(batch, verbose=0)["text"]
    for batch_size in (1, 3, 64):
        assert np.allclose(model.encode_texts(CAPTIONS, batch_size), expected, atol=1e-6)
    assert np.isfinite(model.encode_texts(["", "unknown words", "圆"])).all()


def test_an_item_is_the_mean_of_its_pictures_or_else_of_its_texts(model, batch):
    pictures, texts = list(batch["image"]), list(CAPTIONS)
    rows, words = model.encode_images(pictures), model.encode_texts(texts)
    found = model.encode_items(
        [pictures[:1], pictures[1:4], [], [], batch["image"][2:3]],
        [[], texts[:2], texts[2:3], texts[1:], texts],
    )

    def mean(vectors):
        return vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))

    expected = [rows[0], mean(rows[1:4]), words[2], mean(words[1:]), rows[2]]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(
        model.encode_items([[each] for each in pictures], [texts] * 4), rows
    )


def test_all_pictures_of_items_are_embedded_in_one_call(model, batch, monkeypatch):
    calls = []
    for name in ("encode_images", "encode_texts"):
        monkeypatch.setattr(
            model,
            name,
            lambda each, name=name: calls.append((name, len(each))) or np.eye(4)[: len(each)],
        )
    model.encode_items([list(batch["image"][:2]), [], list(batch["image"][2:])], [["a"], ["b"], []])
    assert calls == [("encode_images", 4), ("encode_texts", 1)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_items([["a.png"]], []), "one list an item; got 1 and 0"),
        (lambda m: m.encode_items([[], []], [["a"], []]), "item 1 has neither an image nor a text"),
        (lambda m: m.encode_items(["a.png"], [[]]), r"give \[picture\]"),
        (lambda m: m.encode_items([[]], ["a dog"]), r"give \[text\]"),
        (lambda m: m.encode_texts("a red circle"), r"give \[text\]"),
        (lambda m: m.encode_texts([1]), "list of strings"),
        (lambda m: m.encode_texts([]), "nothing to encode"),
        (lambda m: m.encode_images("a.png"), r"give \[picture\]"),
        (lambda m: m.encode_images([]), "nothing to encode"),
        (lambda m: m.encode_images(["gone.png"]), "gone.png: No such file"),
        (lambda m: m.encode_images([b"rubbish"]), "the image: not an image"),
        (lambda m: m.evaluate({"text": np.zeros((2, 3), int)}, verbose=0), r"needs both"),
    ],
)
def test_mistakes_are_explained(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_members_must_fit_together(text_preprocessor):
    images = image_tower(make_backbone(), image_size=16, embedding_dim=4, members=2)
    with pytest.raises(ValueError, match="as many members; got 2 for images and 1 for text"):
        DualEncoder(images, text_tower(50, embedding_dim=4), text_preprocessor)
    with pytest.raises(ValueError, match="must be a multiple of members.*; got 5 and 2"):
        text_tower(50, embedding_dim=5, members=2)
    with pytest.raises(ValueError, match="must be a multiple of members.*; got 4 and 0"):
        image_tower(make_backbone(), embedding_dim=4, members=0)


def test_towers_must_fit_together(text_preprocessor):
    images = image_tower(make_backbone(), embedding_dim=4)
    with pytest.raises(ValueError, match="got 4 for images and 8 for text"):
        DualEncoder(images, text_tower(50, units=8, embedding_dim=8))
    words = text_preprocessor.vocabulary_size()
    DualEncoder(images, text_tower(words, units=8, embedding_dim=4), text_preprocessor)
    too_small = text_tower(words - 1, units=8, embedding_dim=4)
    with pytest.raises(ValueError, match=f"vectors for {words - 1} token ids.*has {words}"):
        DualEncoder(images, too_small, text_preprocessor)


@pytest.fixture
def ensemble(text_preprocessor):
    """Two members of width 2."""
    keras.utils.set_random_seed(0)
    images = image_tower(make_backbone(), image_size=16, embedding_dim=4, members=2)
    texts = text_tower(50, word_dim=8, units=8, embedding_dim=4, members=2)
    built = DualEncoder(images, texts, text_preprocessor)
    built.compile(keras.optimizers.Adam(0.05), loss=losses.ContrastiveCosine())
    return built


def test_an_ensemble_trains_each_member_by_itself_and_adds_up_their_cosines(ensemble, batch):
    out = ensemble.predict(batch, verbose=0)
    image, text = (out[name].reshape(4, 2, 2) for name in ("image", "text"))
    assert np.allclose(np.linalg.norm(image, axis=2), 0.5**0.5, atol=1e-5)
    cosines = np.einsum("imd,jmd->mij", image, text) * 2  # of each member
    assert np.allclose(out["image"] @ out["text"].T, cosines.mean(axis=0), atol=1e-5)

    logits = cosines / 0.07
    exact = [
        np.log(np.exp(logits).sum(axis=axis)) - np.diagonal(logits, axis1=1, axis2=2)
        for axis in (1, 2)
    ]
    tower_out = ensemble(batch, training=False)
    found = ensemble.compute_loss(batch, GROUPS, tower_out)
    assert float(found) == pytest.approx(np.mean(exact), rel=1e-4)


def test_an_ensemble_learns_and_round_trips(ensemble, batch, tmp_path):
    history = ensemble.fit(batch, GROUPS, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]
    ensemble.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.members == 2
    assert np.array_equal(loaded.encode_texts(CAPTIONS), ensemble.encode_texts(CAPTIONS))


def test_save_and_load_in_a_fresh_process(model, batch, tmp_path):
    model.fit(batch, GROUPS, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", batch["image"])
    script = (
        "import sys, numpy as np, mmret_tf as mm\n"
        "model = mm.load_model(sys.argv[1] + '/model.keras')\n"
        "images = np.load(sys.argv[1] + '/images.npy')\n"
        f"rows = [model.encode_images(images), model.encode_texts({CAPTIONS!r})]\n"
        "np.save(sys.argv[1] + '/rows.npy', rows)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    images, texts = np.load(tmp_path / "rows.npy")
    assert np.allclose(images, model.encode_images(batch["image"]), atol=1e-6)
    assert np.allclose(texts, model.encode_texts(CAPTIONS), atol=1e-6)


def test_training_goes_on_after_loading(model, batch, tmp_path):
    model.fit(batch, GROUPS, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 2
    first = model.fit(batch, GROUPS, epochs=2, verbose=0, shuffle=False).history["loss"]
    again = loaded.fit(batch, GROUPS, epochs=2, verbose=0, shuffle=False).history["loss"]
    assert first == pytest.approx(again, abs=1e-5)


def test_load_model_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="no model at .*gone.keras"):
        load_model(tmp_path / "gone.keras")
    make_backbone().save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="holds a Functional, not a DualEncoder"):
        load_model(tmp_path / "other.keras")
    (tmp_path / "rubbish.keras").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="rubbish.keras is no .keras file, or damaged"):
        load_model(tmp_path / "rubbish.keras")
    damaged = bytearray((tmp_path / "other.keras").read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit of the weights
    (tmp_path / "damaged.keras").write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged.keras is no .keras file, or damaged: Bad CRC"):
        load_model(tmp_path / "damaged.keras")


def test_collapse_raises_one_alarm_and_scores_no_better_than_chance(model, batch):
    # Zero kernels leave the biases alone: every input gets one and the same embedding.
    for tower in (model.image_tower.projection, model.text_tower.get_layer("projection")):
        tower.kernel.assign(np.zeros(tower.kernel.shape))
        tower.bias.assign(np.ones(4))
    model.optimizer.learning_rate = 0.0
    with pytest.warns(UserWarning, match="embeddings have collapsed") as caught:
        history = model.fit(batch, GROUPS, epochs=3, verbose=0).history
    assert len([w for w in caught if "collapsed" in str(w.message)]) == 1
    assert max(history["spread"]) < COLLAPSED
    metrics = evaluate_retrieval(*model.predict(batch, verbose=0).values(), GROUPS)
    assert metrics["t2i_R@1"] == 0 and metrics["t2i_meanr"] == 4  # the last of four, by ties


def test_cosine_on_matching_pairs_alone_collapses(text_preprocessor, batch):
    """Why every loss has negatives: section 5 as printed is best served by constants."""
    constant = np.tile([[1.0, 0]], (4, 1))
    assert float(keras.losses.CosineSimilarity()(constant, constant)) == pytest.approx(-1)
    assert evaluate_retrieval(constant, constant, GROUPS)["t2i_R@1"] == 0


def test_healthy_training_warns_of_nothing(model, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(batch, GROUPS, epochs=2, verbose=0)
