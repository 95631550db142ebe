"""A gallery of four pictures, and the run of a small model over it."""

import pytest
from conftest import CAPTIONS

from mmret_tf.data.pairs import Pairs
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore


@pytest.fixture(scope="session")
def pairs(picture_files):
    """Four pictures of one colour each, with a caption and a price."""
    sources = {"image": [[path] for path in picture_files], "text": [[each] for each in CAPTIONS]}
    attributes = [{"price": 10 * number} for number in range(4)]
    return Pairs([f"00{number}" for number in range(4)], sources, attributes)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, shared_model, pairs):
    """A run with a model, embeddings and an index; not to be changed."""
    run = Run(tmp_path_factory.mktemp("run"))
    shared_model.save(run.model)
    EmbeddingStore.export(shared_model, pairs, run.embeddings)
    run.build_index()
    return run.folder
