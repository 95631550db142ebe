"""CLIP and SigLIP of KerasHub as towers: small random ones, from training to a served search."""

import io
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving.run_signatures import load as load_as_server

import mmret_tf as mm
from mmret_tf import cli
from mmret_tf.models import thaw
from mmret_tf.models.hub.towers import HubImageTower, HubTextTower
from mmret_tf.training import build_model

reason = 'needs pip install "mmret_tf[hub]"'
hub = pytest.importorskip("keras_hub", reason=reason)
pytest.importorskip("tensorflow_text", reason=reason)

# Small random encoders give all pictures much the same embedding.
look_alike = pytest.mark.filterwarnings("ignore:the embeddings have collapsed")

SIZES = {"hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}
MERGES = ["r e", "re d</w>", "d o", "do g</w>", "' s</w>"]
START, END = "<|startoftext|>", "<|endoftext|>"
TEXTS = [
    *(
        "a red dog",
        "",
        "   ",
        "红色的圆",
        "a 😀 dog!!",
        "a " * 60,
        "it's, don't",
        "<|endoftext|> a",
    ),
    # What KerasHub's TensorFlow tokenizer reads otherwise than its Python one.
    *("A RED  Dog's left", "2024 dogs", "x2024y", "dog 's", "ÉCOLE école", "e\u0301cole"),
    *("a\u3000b\u00a0c", "tab\tnew\nline", "İ ß ſ", "½ ²", "a\u200bb", "a_b-c"),
]
PICTURES = [
    np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    for seed, shape in enumerate([(20, 30, 3), (16, 16, 3), (9, 40, 3)])
]


def byte_letters():
    """The letters that stand for bytes in a vocabulary of CLIP: printable ones for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(each) for each in own] + [chr(256 + each) for each in range(256 - len(own))]


def make_clip(depth=1):
    """A backbone with random weights and its preprocessor, whose vocabulary has every byte."""
    words = [*byte_letters(), *(f"{each}</w>" for each in byte_letters())]
    words += [*(merge.replace(" ", "") for merge in MERGES), START, END]
    vocabulary = {word: place for place, word in enumerate(words)}
    keras.utils.set_random_seed(0)
    size = {**SIZES, "num_layers": depth}
    vision = hub.models.CLIPVisionEncoder(patch_size=8, image_shape=(16, 16, 3), **size)
    text = hub.models.CLIPTextEncoder(len(vocabulary), 8, max_sequence_length=24, **size)
    backbone = hub.models.CLIPBackbone(vision, text, projection_dim=6)
    backbone.clip_head.logit_scale.assign(np.log(100))
    converter = hub.layers.CLIPImageConverter(
        image_size=(16, 16),
        scale=[1 / 68.5, 1 / 66.6, 1 / 70.3],
        offset=[-1.79, -1.75, -1.48],
        interpolation="bicubic",
        antialias=True,
    )
    tokenizer = hub.models.CLIPTokenizer(vocabulary, MERGES)
    return backbone, hub.models.CLIPPreprocessor(tokenizer, converter, sequence_length=24)


def make_siglip():
    sentencepiece = pytest.importorskip("sentencepiece")
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle", "a blue square", "a dog"]),
        model_writer=proto,
        vocab_size=40,
        hard_vocab_limit=False,
        unk_id=0,
        eos_id=1,
        bos_id=-1,
        minloglevel=2,
    )
    tokenizer = hub.models.SigLIPTokenizer(proto.getvalue())
    keras.utils.set_random_seed(0)
    size = {**SIZES, "num_layers": 1}
    vision = hub.models.SigLIPVisionEncoder(patch_size=8, image_shape=(16, 16, 3), **size)
    words = tokenizer.vocabulary_size()
    text = hub.models.SigLIPTextEncoder(words, 8, max_sequence_length=16, **size)
    converter = hub.layers.SigLIPImageConverter(
        image_size=(16, 16), scale=1 / 127.5, offset=-1, crop_to_aspect_ratio=False
    )
    preprocessor = hub.models.SigLIPPreprocessor(tokenizer, converter, sequence_length=16)
    return hub.models.SigLIPBackbone(vision, text), preprocessor


@pytest.fixture(scope="module", params=[make_clip, make_siglip], ids=["clip", "siglip"])
def parts(request):
    """A backbone, its preprocessor and the encoder of them: not to be trained or changed."""
    backbone, preprocessor = request.param()
    return backbone, preprocessor, mm.models.hub_encoder(backbone, preprocessor)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def values(layer):
    return [np.array(weight) for weight in layer.weights]


def same(one, other):
    return all(np.array_equal(*each) for each in zip(one, other, strict=True))


def test_embeddings_are_kerashubs_own(parts):
    backbone, preprocessor, model = parts
    inputs = [preprocessor({"images": each, "prompts": "a"})["images"] for each in PICTURES]
    own = unit(backbone.get_vision_embeddings(np.stack(inputs)))
    np.testing.assert_allclose(model.encode_images(PICTURES), own, atol=1e-6)
    inputs = [preprocessor({"images": PICTURES[0], "prompts": each}) for each in TEXTS]
    ids = np.stack([each["token_ids"] for each in inputs])
    np.testing.assert_array_equal(model.text_preprocessor(TEXTS), ids)
    own = unit(backbone.get_text_embeddings(ids))
    np.testing.assert_allclose(model.encode_texts(TEXTS), own, atol=1e-6)


def test_the_company_of_a_query_changes_nothing(parts):
    model = parts[2]
    together = model.encode_texts(TEXTS), model.encode_images(PICTURES)
    alone = model.encode_texts(TEXTS, batch_size=1), model.encode_images(PICTURES, batch_size=1)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_long_texts_are_cut_and_counted(parts):
    _, preprocessor, model = parts
    text, tokenizer = model.text_preprocessor, preprocessor.tokenizer
    ends = 2 if preprocessor.add_start_token else 1
    fits = "a " * ((text.sequence_length - ends) // len(tokenizer("a")))
    assert text.count_cut([fits, fits + "a", "a"]) == 1
    assert text([fits + "a"])[0, -1] == tokenizer.end_token_id
    assert text.count_cut(TEXTS) == 1
    remarks = model.remarks([[("text", " ")], [("text", "龘")]])
    assert "empty query" in remarks[0] and remarks[1] == ""


def test_a_gallery_is_embedded_in_float32(parts):
    encoder, why = mm.scale.choose_encoder(parts[2], PICTURES)
    assert encoder is parts[2] and why.startswith("float32")
    with pytest.raises(ValueError, match="tower that image_tower made"):
        mm.scale.compress_image_tower(parts[2], PICTURES)


def test_the_temperature_starts_where_the_model_ended(parts):
    backbone, _, model = parts
    if isinstance(backbone, hub.models.CLIPBackbone):
        # Just inside of the range: on its edge, rounding could end the training of it.
        assert float(model.temperature()) == pytest.approx(1 / 100, rel=0.02)
        assert float(model.temperature()) > 0.01
    else:
        assert float(model.temperature()) == 1


def test_sequences_are_patches_and_words_up_to_the_end(parts):
    model = parts[2]
    regions, mask = model.image_tower.sequence(np.zeros((2, 16, 16, 3), np.float32))
    assert regions.shape == (2, 4, 8) and np.all(mask)
    ids = model.text_preprocessor(["dog", "a dog a dog", "a " * 60])
    words, mask = model.text_tower.sequence(ids)
    assert words.shape == (*ids.shape, 8)
    lengths = np.sum(mask, axis=1)
    assert 1 < lengths[0] < lengths[1] < lengths[2] == ids.shape[1]


def test_a_saved_model_is_the_same_and_holds_its_weights_once(parts, tmp_path):
    backbone, _, model = parts
    model.save(tmp_path / "model.keras")
    loaded = mm.load_model(tmp_path / "model.keras")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.image_size == 16 and not loaded.image_tower.backbone.trainable
    used = sum(weight.nbytes for weight in values(model))
    assert used < 1.05 * sum(weight.nbytes for weight in values(backbone))


def test_a_preset_in_a_folder_is_loaded(parts, tmp_path):
    backbone, preprocessor, model = parts
    backbone.save_to_preset(tmp_path)
    preprocessor.save_to_preset(tmp_path)
    assert mm.models.hub_encoder(tmp_path).fingerprint == model.fingerprint


def test_thawed_layers_come_back_thawed():
    towers = mm.models.hub_encoder(*make_clip(depth=2)).towers.values()
    for tower, kind in zip(towers, (HubImageTower, HubTextTower), strict=True):
        thaw(tower.backbone, "encoder_block_1")
        again = kind.from_config(tower.get_config())
        trainable = [layer.trainable for layer in tower.backbone.layers]
        assert set(trainable) == {True, False}
        assert [layer.trainable for layer in again.backbone.layers] == trainable
        assert len(again.trainable_weights) == len(tower.trainable_weights)


@look_alike
def test_heads_train_on_cached_features_and_frozen_encoders_stay(tmp_path):
    model = mm.models.hub_encoder(*make_siglip())
    pairs = mm.load_pairs("scenes", split="train", size=8, seed=0)
    encoders = [tower.backbone for tower in model.towers.values()]
    before, heads = [values(each) for each in encoders], values(model.image_tower.head)
    cache = mm.training.FeatureCache(
        model.image_tower, pairs.first_sources, tmp_path, pairs.first_sources, views=2
    )
    encoder, cached = cache.encoder(model), cache.cached(pairs)
    encoder.compile(keras.optimizers.Adam(0.01), mm.losses.ContrastiveCosine())
    encoder.fit(cached.as_dataset(encoder, batch_size=8, training=True), verbose=0)
    assert all(same(values(each), old) for each, old in zip(encoders, before, strict=True))
    assert not same(values(model.image_tower.head), heads)
    np.testing.assert_allclose(
        encoder.encode("image", cached.first_sources),
        model.encode_images(pairs.image_paths),
        atol=1e-6,
    )
    model.save(tmp_path / "model.keras")
    config = mm.TrainConfig(initial_model=str(tmp_path / "model.keras"))
    assert build_model(config, [], steps=1).fingerprint == model.fingerprint
    keras.utils.set_random_seed(1)  # it drops what SentencePiece has in TensorFlow's kernels
    embeddings = mm.load_model(tmp_path / "model.keras").encode_texts(TEXTS)
    keras.utils.set_random_seed(1)
    np.testing.assert_allclose(model.encode_texts(TEXTS), embeddings, atol=1e-6)


@look_alike
def test_a_clip_is_trained_saved_indexed_exported_and_searched(tmp_path, capsys):
    model = mm.models.hub_encoder(*make_clip(), trainable=True)
    pairs = mm.load_pairs("scenes", split="train", size=16, seed=0)
    before = [values(tower.backbone) for tower in model.towers.values()]
    model.compile(keras.optimizers.Adam(0.01), mm.losses.ContrastiveCosine())
    batches = pairs.as_dataset(model, batch_size=16, training=True)
    losses = model.fit(batches.repeat(), steps_per_epoch=4, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    for tower, old in zip(model.towers.values(), before, strict=True):
        assert not same(values(tower.backbone), old)

    run = mm.ranking.Run(tmp_path / "run")
    run.folder.mkdir()
    model.save(run.model)
    mm.EmbeddingStore.export(model, pairs, run.embeddings)
    run.build_index()
    searcher = run.open_searcher(model)
    with pytest.raises(SystemExit) as ended:
        arguments = ["--run", str(run.folder), "--directory", str(tmp_path / "clip"), "--top", "5"]
        cli.main(["export", *arguments])
    assert not ended.value.code and "tensorflow_text" in capsys.readouterr().out
    served = load_as_server(str(tmp_path / "clip" / "1"))
    picture = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(picture, "PNG")
    for name, queries in (("text", TEXTS[3:8]), ("image", [picture.getvalue()])):
        answers = served(f"search_by_{name}", {name: queries})
        for query, ids in zip(queries, answers["ids"].tolist(), strict=True):
            expected = [each.id for each in searcher.search(k=5, **{name: query})]
            assert [each.decode() for each in ids] == expected

    load = "import sys, mmret_tf; print(mmret_tf.load_model(sys.argv[1]).fingerprint)"
    printed = subprocess.check_output([sys.executable, "-c", load, str(run.model)], text=True)
    assert printed.strip() == model.fingerprint


def test_what_does_not_fit_is_refused(tmp_path):
    backbone, preprocessor = make_clip()
    with pytest.raises(ValueError, match="got CLIPBackbone and NoneType"):
        mm.models.hub_encoder(backbone)
    with pytest.raises(ValueError, match=r"image_size=\(16, 16\); got None"):
        alone = hub.models.CLIPPreprocessor(preprocessor.tokenizer)
        mm.models.hub_encoder(backbone, alone)
    with pytest.raises(ValueError, match="sequence_length=24, .* got 77"):
        converter = preprocessor.image_converter
        longer = hub.models.CLIPPreprocessor(preprocessor.tokenizer, converter)
        mm.models.hub_encoder(backbone, longer)
    with pytest.raises(ValueError, match="Unknown preset"):
        mm.models.hub_encoder(tmp_path / "gone")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    mm.models.hub_encoder(*make_siglip()).save(tmp_path / "model.keras")
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ImportError, match=r'pip install "mmret_tf\[hub\]"'):
        mm.load_model(tmp_path / "model.keras")


def test_a_preset_without_a_network_says_what_to_do(monkeypatch):
    def offline(preset):
        raise OSError("no network")

    monkeypatch.setattr(hub.models.CausalLMPreprocessor, "from_preset", offline)
    with pytest.raises(ConnectionError, match="save_to_preset.*no network"):
        mm.models.hub_encoder("clip_vit_base_patch32")


def test_pictures_are_cropped_and_mirrored_in_training():
    tower = mm.models.hub_encoder(*make_siglip()).image_tower
    sources, seeds = tf.stack([tf.io.encode_png(PICTURES[1])] * 2), tf.zeros((2, 2), tf.int64)
    plain, mirrored = tower.augment(sources, seeds, tf.constant([False, True]))
    np.testing.assert_array_equal(plain, mirrored[:, ::-1])
    assert not np.array_equal(plain, tower.preprocess(sources)[0])
