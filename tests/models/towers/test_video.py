"""The video tower: frames, their order, round trips, caches and exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_backbone, make_text

import mmret_tf as mm
from mmret_tf.data.decoders.clips import encode_frames
from mmret_tf.data.decoders.video import load_video
from mmret_tf.models import VideoTower, video_tower
from mmret_tf.models.dual_encoder import load_as
from mmret_tf.models.towers.video import FramesHead

CLIPS = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
FILES = [encode_frames(clip) for clip in CLIPS]


@pytest.fixture(scope="module")
def tower():
    """Four frames of 16 pixels; not to be changed."""
    keras.utils.set_random_seed(0)
    return video_tower(make_backbone(), frames=4, image_size=16, units=6, embedding_dim=8)


@pytest.fixture(scope="module")
def model(tower):
    """An encoder of clips and texts; not to be changed."""
    return mm.MultiEncoder([tower, mm.text_tower(make_text(), units=8, embedding_dim=8)])


def test_clips_are_decoded_as_by_load_video(tower):
    files = [*FILES, encode_frames(CLIPS[0][:3])]
    expected = [load_video(each, 4, 16) for each in files]
    assert np.array_equal(tower.preprocess(tf.constant(files)), expected)


def test_all_frames_of_a_clip_are_augmented_alike():
    tower = video_tower(make_backbone(), frames=3, image_size=8, min_crop=0.5)
    picture = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    sources = tf.constant([encode_frames(np.stack([picture] * 3))] * 4)
    seeds, still = tf.constant(np.arange(8).reshape(4, 2)), tf.fill([4], False)
    frames = tower.augment(sources, seeds, still).numpy()
    assert np.array_equal(frames, np.repeat(frames[:, :1], 3, axis=1))
    assert len({each.tobytes() for each in frames}) == 4  # every seed crops differently
    assert np.array_equal(tower.augment(sources, seeds, ~still), frames[:, :, :, ::-1])


def test_the_backbone_sees_each_frame(tower):
    expected = [tower.backbone(clip.astype(np.float32)) for clip in CLIPS]
    vectors, mask = tower.sequence(CLIPS)
    assert np.allclose(vectors, expected, atol=1e-5) and np.all(mask)
    assert np.allclose(tower.features(CLIPS), np.reshape(expected, (2, -1)), atol=1e-5)
    assert tower.sequence_shape() == (4, tower.backbone.output_shape[-1]) and tower.is_ordered


def test_the_order_of_the_frames_counts(tower):
    forwards, backwards = tower(CLIPS), tower(CLIPS[:, ::-1])
    assert not np.allclose(forwards, backwards, atol=1e-3)
    same = np.repeat(CLIPS[:, :1], 4, axis=1)  # nothing moves
    assert np.allclose(tower(same), tower(same[:, ::-1]), atol=1e-6)


def test_the_states_of_the_lstm_are_max_pooled():
    keras.utils.set_random_seed(0)
    head = FramesHead(frames=3, units=5, width=6, embedding_dim=4)
    frames = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    states = np.asarray(head.network(frames)).max(axis=1)
    plain = mm.models.Head.project(head, states)
    assert np.allclose(head.project(frames.reshape(2, 6)), plain, atol=1e-6)
    with pytest.raises(ValueError, match="width must be a multiple of frames; got 7 and 3"):
        FramesHead(frames=3, units=5, width=7, embedding_dim=4)


def test_a_saved_tower_gives_the_same_embeddings(tower, tmp_path):
    tower.save(tmp_path / "tower.keras")
    loaded = load_as(VideoTower, tmp_path / "tower.keras")
    assert np.array_equal(loaded(CLIPS), tower(CLIPS))
    assert loaded.settings == tower.settings == [16, None, 4]


def test_an_ensemble_has_a_part_for_each_member():
    settings = {"frames": 4, "image_size": 16, "units": 6, "embedding_dim": 8}
    tower = video_tower(make_backbone(), members=2, **settings)
    assert tower(CLIPS).shape == (2, tower.embedding_dim) and tower.members == 2
    assert np.allclose(np.linalg.norm(tower(CLIPS), axis=1), 1, atol=1e-5)


def test_features_of_a_frozen_backbone_are_cached(model, tmp_path):
    sources = {"video": [[each] for each in FILES], "text": [["one"], ["another"]]}
    pairs = mm.data.Collection(["one", "another"], sources).pairs("video", "text")
    cache = mm.training.FeatureCache(
        model.towers["video"], pairs.first_sources, tmp_path / "features"
    )
    cached = cache.encoder(model).encode("video", cache.cached(pairs).first_sources)
    assert np.allclose(cached, model.encode("video", pairs.first_sources), atol=1e-5)


def test_an_export_encodes_and_searches_by_clip(model, tmp_path):
    sources = {"video": [[each] for each in FILES], "text": [["one"], ["另一个"]]}
    items = mm.data.Collection(["one", "another"], sources)
    store = mm.EmbeddingStore.export(model, items, tmp_path / "embeddings")
    searcher = mm.Searcher(
        model, mm.BruteForceIndex.build(store.embeddings, store.ids), store.items
    )
    served = tf.saved_model.load(mm.export_saved_model(searcher, tmp_path / "toy", 1, k=2))
    for some in (FILES[:1], FILES[::-1]):  # another number of rows
        answer = served.signatures["encode_video"](video=tf.constant(some))["embedding"]
        assert np.allclose(answer, model.encode("video", some), atol=1e-5)
        found = served.signatures["search_by_video"](video=tf.constant(some))
        expected = [searcher.search(video=each, k=2) for each in some]
        assert found["ids"].numpy().astype(str).tolist() == [
            [result.id for result in each] for each in expected
        ]
    assert searcher.search(video=CLIPS[1], k=1)[0].id == "another"
