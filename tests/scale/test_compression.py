"""Compressed image towers: how near they stay to float32, and how they are kept and used."""

import re
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from conftest import make_backbone, make_text, make_wide_model

from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.models import DualEncoder, image_tower, load_model, text_tower
from mmret_tf.models.towers.tower import input_batches
from mmret_tf.ranking import BruteForceIndex, EmbeddingStore, Searcher
from mmret_tf.scale import (
    CompressedEncoder,
    choose_encoder,
    compress_image_tower,
    compression,
    compression_report,
)
from mmret_tf.similarity.vectors import row_cosines

PRECISIONS = pytest.mark.parametrize("precision", ["int8", "float16"])


@pytest.fixture(scope="module")
def compressed(wide_model, photos):
    """A compressed encoder for each precision."""
    before = wide_model.get_weights()
    forms = {
        precision: compress_image_tower(wide_model, photos.image_paths, precision)
        for precision in ("int8", "float16")
    }
    assert all(map(np.array_equal, before, wide_model.get_weights()))
    return forms


@PRECISIONS
def test_the_compressed_tower_is_smaller_and_nearly_the_same(
    precision, compressed, wide_model, photos, exact
):
    encoder = compressed[precision]
    found = encoder.encode_images(photos.image_paths)
    assert found.dtype == np.float32 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert row_cosines(found, exact).min() > {"int8": 0.99, "float16": 0.99999}[precision]
    assert (found != exact).any()
    full = sum(weight.nbytes for weight in wide_model.image_tower.get_weights())
    assert full / encoder.size > {"int8": 3.3, "float16": 1.8}[precision]

    # Batches of other sizes, as the last batch of a collection is.
    for paths in (photos.image_paths[:1], photos.image_paths[:3], photos.image_paths[:1]):
        np.testing.assert_allclose(encoder.encode_images(paths), found[: len(paths)], atol=1e-5)


def test_it_is_an_encoder_in_the_space_of_its_model(compressed, wide_model):
    encoder = compressed["int8"]
    assert encoder.form == "int8" and encoder.encoder is wide_model
    assert encoder.modalities == ["image", "text"] and encoder.embedding_dim == 32
    assert encoder.fingerprint == wide_model.fingerprint
    assert encoder.towers["text"] is wide_model.text_tower
    assert wide_model.form == "float32"


def test_int8_is_right_on_average_where_it_was_calibrated(compressed, wide_model, photos):
    tower, small = wide_model.image_tower, compressed["int8"].towers["image"]
    (batch,) = input_batches(tower, photos.first_sources)
    right = tower.head.project(tower.features(batch)).numpy()
    before = (right - (small.project(batch) - small.shift)).mean(axis=0)
    assert np.allclose(small.shift, before, atol=1e-5) and np.abs(small.shift).max() > 0
    assert np.allclose(small.project(batch).mean(axis=0), right.mean(axis=0), atol=1e-5)


def test_many_threads_may_use_one_tower(compressed, photos):
    encoder, sizes = compressed["float16"], [1, 2, 5, 3] * 4
    right = {size: encoder.encode_images(photos.image_paths[:size]) for size in set(sizes)}
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda size: encoder.encode_images(photos.image_paths[:size]), sizes)
        for size, embeddings in zip(sizes, found, strict=True):
            np.testing.assert_allclose(embeddings, right[size], atol=1e-6)


def test_int8_has_a_scale_for_each_channel(compressed):
    kernels = [
        tensor
        for tensor in compressed["int8"].towers["image"]._interpreter.get_tensor_details()
        if tensor["dtype"] == np.int8 and tuple(tensor["shape"]) == (128, 3, 3, 128)
    ]
    assert [len(tensor["quantization_parameters"]["scales"]) for tensor in kernels] == [128]


@pytest.mark.filterwarnings("ignore:Skipping variable loading")  # of an optimizer without a step
def test_it_is_kept_beside_the_run_and_used_from_there(compressed, wide_model, photos, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    wide_model.save(run / "model.keras")
    compressed["int8"].save(run / "compressed")
    loaded = CompressedEncoder.load(run / "compressed", load_model(run / "model.keras"))
    assert (loaded.form, loaded.size) == ("int8", compressed["int8"].size)
    found = compressed["int8"].encode_images(photos.image_paths)
    store = EmbeddingStore.export(loaded, photos, run / "embeddings")
    assert store.form == "int8"
    np.testing.assert_array_equal(store.embeddings, found)
    BruteForceIndex.build(store.embeddings, store.ids).save(run / "index")

    searcher = Searcher.open(run, encoder=loaded)
    assert searcher.encoder.form == "int8"
    [result] = searcher.search(image=photos.image_paths[5], k=1)
    assert (result.id, result.score) == ("05", pytest.approx(1, abs=1e-5))
    assert Searcher.open(run).encoder.form == "float32"

    damaged = run / "compressed" / "image_tower.tflite"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        CompressedEncoder.load(run / "compressed", wide_model)


@pytest.fixture(scope="module")
def ensemble():
    """Two members that see pictures at two scales."""
    keras.utils.set_random_seed(0)
    options = {"embedding_dim": 4, "members": 2}
    images = image_tower(make_backbone(width=16), image_size=16, scales=[16, 24], **options)
    return DualEncoder(images, text_tower(make_text(), word_dim=8, units=8, **options))


@PRECISIONS
def test_an_ensemble_that_sees_several_scales_is_compressed_too(
    precision, ensemble, photos, tmp_path
):
    compress_image_tower(ensemble, photos.image_paths, precision).save(tmp_path / "compressed")
    found = CompressedEncoder.load(tmp_path / "compressed", ensemble).encode_images(
        photos.image_paths
    )
    assert np.allclose(np.linalg.norm(found.reshape(-1, 2, 2), axis=2), 0.5**0.5, atol=1e-5)
    assert row_cosines(found, ensemble.encode_images(photos.image_paths)).min() > 0.99


def test_it_belongs_to_one_model(photos, tmp_path):
    model = make_wide_model(width=16)
    compressed = compress_image_tower(model, photos.image_paths, "float16")
    compressed.save(tmp_path / "compressed")
    fingerprint = model.fingerprint
    model.text_tower.head.projections[0].bias.assign(np.ones(32))
    assert compressed.fingerprint == fingerprint != model.fingerprint
    with pytest.raises(ValueError, match="made from another model.*`mmret compress`"):
        CompressedEncoder.load(tmp_path / "compressed", model)
    with pytest.raises(ValueError, match="no compressed tower at .*gone: .*`mmret compress`"):
        CompressedEncoder.load(tmp_path / "gone", model)


def test_what_cannot_be_compressed_is_explained(wide_model, photos):
    with pytest.raises(ValueError, match="precision must be int8 or float16; got 'int4'"):
        compress_image_tower(wide_model, photos.image_paths, "int4")
    with pytest.raises(ValueError, match="representative must hold pictures"):
        compress_image_tower(wide_model, [])
    with pytest.raises(ValueError, match="gone.png"):
        compress_image_tower(wide_model, ["gone.png"])


def test_the_report_compares_with_float32(compressed, wide_model, photos, exact):
    encoder = compressed["int8"]
    report = compression_report(encoder, photos)
    assert (report["precision"], report["images"]) == ("int8", 40)
    weights = wide_model.image_tower.get_weights()
    assert report["bytes"] == encoder.size
    assert report["float32_bytes"] == 4 * sum(weight.size for weight in weights)
    assert report["images_per_second"] > 0 and report["float32_images_per_second"] > 0
    found = encoder.encode_images(photos.image_paths)
    cosines = row_cosines(found, exact)
    assert report["cosine_min"] == pytest.approx(cosines.min())
    assert report["cosine_mean"] == pytest.approx(cosines.mean())
    texts = wide_model.encode_texts(photos.all_captions())
    for prefix, images in (("", found), ("float32_", exact)):
        metrics = evaluate_retrieval(images, texts, np.arange(40))
        assert report[f"{prefix}t2i_R@10"] == metrics["t2i_R@10"]
        assert report[f"{prefix}i2t_R@1"] == metrics["i2t_R@1"]


@pytest.mark.parametrize(
    ("speed", "noise", "chosen"),
    [(40, 0.0, "bfloat16"), (20, 0.0, "float32"), (40, 0.1, "float32")],
)
def test_the_faster_form_is_chosen_if_it_is_exact_enough(
    faster, wide_model, photos, monkeypatch, speed, noise, chosen
):
    def measure(tower, inputs):
        embeddings = tower.predict_on_batch(inputs)
        is_float32 = tower is wide_model.image_tower
        return (embeddings, 30) if is_float32 else (embeddings + noise, speed)

    monkeypatch.setattr(compression, "images_per_second", measure)
    monkeypatch.setattr(compression, "bfloat16_encoder", lambda model: faster)
    monkeypatch.setattr(compression, "has_bfloat16", lambda: True)
    monkeypatch.setattr(compression, "WORTH_A_TRIAL", 40 / 30)
    encoder, why = choose_encoder(wide_model, photos.image_paths)
    assert why.startswith(f"{chosen}: {speed} images a second in bfloat16, 30 in float32")
    assert encoder is (faster if chosen == "bfloat16" else wide_model)


def test_without_bfloat16_or_with_little_to_do_it_is_float32(wide_model, photos, monkeypatch):
    for is_there, reason in [(False, "float32, .* no bfloat16"), (True, "float32: .* a second$")]:
        monkeypatch.setattr(compression, "has_bfloat16", lambda is_there=is_there: is_there)
        encoder, why = choose_encoder(wide_model, photos.first_sources)
        assert encoder is wide_model and re.match(reason, why)
