"""What the tests of serving share: a small searcher, and its export."""

import pytest
from serving.serving_models import make_model, make_searcher

from mmret_tf import export_saved_model, load_model


@pytest.fixture(scope="session")
def searcher(tmp_path_factory):
    """A small searcher. Its model comes from a file, so nothing of it was called before."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    make_model().save(path)
    return make_searcher(load_model(path))


@pytest.fixture(scope="session")
def small(searcher, tmp_path_factory):
    """The searcher's export with exact search: the folder of version 1 of the model "small"."""
    return export_saved_model(searcher, tmp_path_factory.mktemp("exports") / "small", 1, k=7)
