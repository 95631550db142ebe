"""Smaller and faster image towers: how near they stay, and that what is set is what is used."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CAPTIONS, make_backbone, make_wide_model
from PIL import Image

from mmret_tf import compression
from mmret_tf.compression import (
    Bfloat16ImageTower,
    CompressedImageTower,
    choose_image_encoder,
    compress_image_tower,
    compression_report,
    has_bfloat16,
    images_per_second,
)
from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder
from mmret_tf.embeddings import EmbeddingStore, row_cosines
from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.index import build_index
from mmret_tf.preprocessing import load_batches
from mmret_tf.searcher import Searcher
from mmret_tf.towers import image_tower, text_tower

PRECISIONS = pytest.mark.parametrize("precision", ["int8", "float16"])


@pytest.fixture
def wide_model(text_preprocessor):
    return make_wide_model(text_preprocessor)


@pytest.fixture
def photos(tmp_path):
    """40 pictures with a caption each."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02}.png" for number in range(40)]
    for path in paths:
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC).save(path)
    captions = [[CAPTIONS[number % 4]] for number in range(40)]
    return PairDataset([path.stem for path in paths], paths, captions, [{}] * 40, [""] * 40)


@PRECISIONS
def test_the_compressed_tower_is_smaller_and_nearly_the_same(precision, wide_model, photos):
    exact = wide_model.encode_images(photos.image_paths)
    before = wide_model.get_weights()
    tower = compress_image_tower(wide_model, photos.image_paths, precision)
    assert all(map(np.array_equal, before, wide_model.get_weights()))

    wide_model.image_encoder = tower
    found = wide_model.encode_images(photos.image_paths)
    assert found.dtype == np.float32 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = row_cosines(found, exact)
    assert cosines.min() > {"int8": 0.99, "float16": 0.99999}[precision]
    assert (found != exact).any()
    full = sum(weight.nbytes for weight in wide_model.image_tower.get_weights())
    assert full / tower.size > {"int8": 3.3, "float16": 1.8}[precision]

    # One batch after another of another size, as the last batch of a collection is.
    for paths in (photos.image_paths[:1], photos.image_paths[:3], photos.image_paths[:1]):
        np.testing.assert_allclose(wide_model.encode_images(paths), found[: len(paths)], atol=1e-5)


def test_int8_is_right_on_average_where_it_was_calibrated(wide_model, photos):
    tower = compress_image_tower(wide_model, photos.image_paths)
    (batch,) = load_batches(photos.image_paths, 16)
    exact = wide_model.image_tower.project(batch).numpy()
    before = (exact - (tower.project(batch) - tower.shift)).mean(axis=0)
    assert np.allclose(tower.shift, before, atol=1e-5) and np.abs(tower.shift).max() > 0
    assert np.allclose(tower.project(batch).mean(axis=0), exact.mean(axis=0), atol=1e-5)


def test_many_threads_may_use_one_tower(wide_model, photos):
    wide_model.image_encoder = compress_image_tower(wide_model, photos.image_paths, "float16")
    sizes = [1, 2, 5, 3] * 4
    right = {size: wide_model.encode_images(photos.image_paths[:size]) for size in set(sizes)}
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda size: wide_model.encode_images(photos.image_paths[:size]), sizes)
        for size, embeddings in zip(sizes, found, strict=True):
            np.testing.assert_allclose(embeddings, right[size], atol=1e-6)


def test_int8_has_a_scale_for_each_channel(wide_model, photos):
    tower = compress_image_tower(wide_model, photos.image_paths)
    kernels = [
        tensor
        for tensor in tower._interpreter.get_tensor_details()
        if tensor["dtype"] == np.int8 and tuple(tensor["shape"]) == (128, 3, 3, 128)
    ]
    assert [len(tensor["quantization_parameters"]["scales"]) for tensor in kernels] == [128]


def test_it_can_be_kept_beside_the_run_and_is_used_from_there(wide_model, photos, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    wide_model.save(run / "model.keras")
    tower = compress_image_tower(wide_model, photos.image_paths)
    tower.save(run / "compressed")
    wide_model.image_encoder = tower
    found = wide_model.encode_images(photos.image_paths)
    store = EmbeddingStore.export(wide_model, photos, run / "embeddings")
    assert store.encoder == "int8"
    np.testing.assert_array_equal(store.embeddings, found)
    build_index(store.embeddings, store.ids).save(run / "index")

    searcher = Searcher.open(run, compressed=True)
    assert searcher.model.image_encoder.name == "int8"
    assert searcher.search(image=photos.image_paths[5], k=1)[0].score == pytest.approx(1, abs=1e-5)
    assert Searcher.open(run).model.image_encoder is None

    damaged = run / "compressed" / "image_tower.tflite"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        Searcher.open(run, compressed=True)


@PRECISIONS
def test_an_ensemble_that_sees_several_scales_is_compressed_too(
    precision, text_preprocessor, photos, tmp_path
):
    keras.utils.set_random_seed(0)
    options = {"embedding_dim": 4, "members": 2}
    images = image_tower(make_backbone(width=16), image_size=16, scales=[16, 24], **options)
    texts = text_tower(50, word_dim=8, units=8, **options)
    model = DualEncoder(images, texts, text_preprocessor)
    exact = model.encode_images(photos.image_paths)
    compress_image_tower(model, photos.image_paths, precision).save(tmp_path / "compressed")
    model.image_encoder = CompressedImageTower.load(tmp_path / "compressed", model)
    found = model.encode_images(photos.image_paths)
    assert np.allclose(np.linalg.norm(found.reshape(-1, 2, 2), axis=2), 0.5**0.5, atol=1e-5)
    assert row_cosines(found, exact).min() > 0.99


def test_it_belongs_to_one_model(wide_model, photos, tmp_path):
    compress_image_tower(wide_model, photos.image_paths, "float16").save(tmp_path / "compressed")
    wide_model.text_tower.get_layer("projection").bias.assign(np.ones(32))
    with pytest.raises(ValueError, match="made from another model .*`mmret compress`"):
        CompressedImageTower.load(tmp_path / "compressed", wide_model)
    with pytest.raises(ValueError, match="no compressed tower at .*gone: `mmret compress`"):
        CompressedImageTower.load(tmp_path / "gone", wide_model)


def test_an_encoder_that_is_set_leaves_weights_and_files_as_they_were(wide_model, photos, tmp_path):
    names = [weight.path for weight in wide_model.weights]
    wide_model.image_encoder = Bfloat16ImageTower(wide_model.image_tower)
    assert [weight.path for weight in wide_model.weights] == names
    wide_model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").image_encoder is None


def test_what_cannot_be_compressed_is_explained(wide_model, photos):
    with pytest.raises(ValueError, match="precision must be one of int8, float16; got 'int4'"):
        compress_image_tower(wide_model, photos.image_paths, "int4")
    with pytest.raises(ValueError, match="representative must hold pictures"):
        compress_image_tower(wide_model, [])
    with pytest.raises(ValueError, match="gone.png"):
        compress_image_tower(wide_model, ["gone.png"])
    other = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="image_tower made can be compressed; got a Sequential"):
        Bfloat16ImageTower(other)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(wide_model, photos):
    tower = Bfloat16ImageTower(wide_model.image_tower)
    convolutions = [
        layer for layer in tower._tower.backbone.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    assert [layer.compute_dtype for layer in convolutions] == ["bfloat16"] * 2
    assert {weight.dtype for weight in tower._tower.weights} == {"float32"}
    exact = wide_model.encode_images(photos.image_paths)
    wide_model.image_encoder = tower
    found = wide_model.encode_images(photos.image_paths)
    assert found.dtype == np.float32
    assert row_cosines(found, exact).min() > 0.999 and (found != exact).any()


@pytest.mark.parametrize(
    ("speed", "noise", "chosen"),
    [(40, 0.0, "bfloat16"), (20, 0.0, "float32"), (40, 0.1, "float32")],
)
def test_the_faster_form_is_chosen_if_it_is_exact_enough(
    wide_model, photos, monkeypatch, speed, noise, chosen
):
    def measure(encoder, images):
        embeddings, _ = images_per_second(encoder, images)
        if isinstance(encoder, Bfloat16ImageTower):
            return embeddings + noise, speed
        return embeddings, 30

    monkeypatch.setattr(compression, "images_per_second", measure)
    monkeypatch.setattr(compression, "has_bfloat16", lambda: True)
    monkeypatch.setattr(compression, "WORTH_A_TRIAL", 40 / 30)
    words = choose_image_encoder(wide_model, photos.image_paths)
    assert words.startswith(f"{chosen}: {speed} images a second in bfloat16, 30 in float32")
    encoder = wide_model.image_encoder
    assert (encoder.name if encoder else "float32") == chosen


def test_without_bfloat16_or_with_little_to_do_it_is_float32(wide_model, photos, monkeypatch):
    wide_model.image_encoder = Bfloat16ImageTower(wide_model.image_tower)
    monkeypatch.setattr(compression, "cpu_features", lambda: ["avx2"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    assert "no bfloat16" in choose_image_encoder(wide_model, photos.image_paths)
    assert wide_model.image_encoder is None
    monkeypatch.setattr(compression, "cpu_features", lambda: ["avx2", "avx512_bf16"])
    assert has_bfloat16()
    words = choose_image_encoder(wide_model, photos.image_paths)
    assert words.startswith("float32: ") and wide_model.image_encoder is None


def test_the_report_compares_with_float32(wide_model, photos):
    exact = wide_model.encode_images(photos.image_paths)
    with pytest.raises(ValueError, match="as the model's image_encoder; got NoneType"):
        compression_report(wide_model, photos)
    wide_model.image_encoder = tower = compress_image_tower(wide_model, photos.image_paths)
    found = wide_model.encode_images(photos.image_paths)
    report = compression_report(wide_model, photos)
    assert wide_model.image_encoder is tower
    assert (report["precision"], report["images"], report["bytes"]) == ("int8", 40, tower.size)
    weights = wide_model.image_tower.get_weights()
    assert report["float32_bytes"] == 4 * sum(weight.size for weight in weights)
    assert report["images_per_second"] > 0 and report["float32_images_per_second"] > 0
    cosines = row_cosines(found, exact)
    assert report["cosine_min"] == pytest.approx(cosines.min())
    texts = wide_model.encode_texts(photos.all_captions())
    for prefix, images in (("", found), ("float32_", exact)):
        metrics = evaluate_retrieval(images, texts, np.arange(40))
        assert report[f"{prefix}t2i_R@10"] == metrics["t2i_R@10"]
        assert report[f"{prefix}i2t_R@1"] == metrics["i2t_R@1"]
