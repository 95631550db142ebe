"""Regions and words of a gallery on disk: equal to those in memory, and checked."""

import numpy as np
import pytest
from conftest import CAPTIONS, make_model

import mmret_tf as mm
from mmret_tf.data.collection import Collection
from mmret_tf.ranking.reranker import parts_of_items
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.ranking.storage.parts import StoredParts


@pytest.fixture(scope="module")
def reranker():
    return mm.Reranker(make_model(), dim=8)


@pytest.fixture(scope="module")
def gallery(picture_files):
    """An item of two pictures, one of a picture, and a text alone."""
    sources = {"image": [picture_files[:2], picture_files[2:3], []], "text": [[], [], CAPTIONS[:1]]}
    return Collection(["two", "one", "text"], sources)


def test_they_are_those_in_memory_to_a_127th(reranker, gallery, tmp_path):
    stored = StoredParts.export(reranker, gallery, tmp_path / "parts")
    in_memory = parts_of_items(reranker, gallery.records())
    assert list(stored) == ["two", "one", "text"] and len(stored) == 3
    for key, parts in in_memory.items():
        assert stored[key].shape == parts.shape
        assert np.abs(stored[key] - parts).max() < 1 / 127


def test_those_of_known_content_are_not_read_again(reranker, gallery, tmp_path, monkeypatch):
    StoredParts.export(reranker, gallery, tmp_path / "parts")
    known = EmbeddingStore.open(tmp_path / "parts")
    asked = []
    encode = reranker.encode
    monkeypatch.setattr(
        reranker, "encode", lambda name, each: asked.append(name) or encode(name, each)
    )
    again = StoredParts.export(reranker, gallery, tmp_path / "again", known)
    assert asked == [] and list(again) == ["two", "one", "text"]


def test_others_parts_and_missing_ones_are_refused(reranker, gallery, tmp_path):
    StoredParts.export(reranker, gallery.subset([0, 2]), tmp_path / "parts")
    store = EmbeddingStore.open(tmp_path / "parts")
    with pytest.raises(ValueError, match="lacks 'one': run `mmret embed` again"):
        StoredParts(store, gallery.records(), reranker)
    other = mm.Reranker(make_model(), dim=8)
    other.readers["image"].network.bias.assign_add(np.ones(8))
    with pytest.raises(ValueError, match="was made by another model"):
        StoredParts(store, gallery.subset([0]).records(), other)
