"""What the tests of serving share: a small searcher, its export, and a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving.serving_models import make_model, make_searcher, save_toys

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


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """The folder with the models "toy" and "integers"."""
    folder = tmp_path_factory.mktemp("toys")
    save_toys(folder)
    return folder


@pytest.fixture(scope="session")
def server(small, toys):
    """The addresses, REST and gRPC, of a server of all three models in a fresh process."""
    if real := os.environ.get("MMRET_TF_SERVING"):
        host, port = real.rsplit(":", 1)
        yield {"rest": real, "grpc": f"{host}:{int(port) - 1}"}
        return
    script = Path(__file__).with_name("serving_server.py")
    command = [sys.executable, script, toys / "toy", toys / "integers", small.parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield json.loads(process.stdout.readline())  # at the end its input is closed, and it ends
