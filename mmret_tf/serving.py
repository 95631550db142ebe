"""SavedModels that TensorFlow Serving loads, and what it needs beside them (模型服务).

The uses of section 6 need a search that other programs can call. `ServingClient` is one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from mmret_tf.checks import checked_count
from mmret_tf.dual_encoder import DualEncoder
from mmret_tf.searcher import Searcher
from mmret_tf.serving_client import ServingClient  # noqa: F401  the other end of what is here
from mmret_tf.signatures import GalleryGraph, make_signatures

# Rows of the requests that a server runs before it takes others.
WARM_UP_ROWS = (1, 8)

# Requests that come together are computed together; pictures fill the memory sooner than texts.
BATCHING_PARAMETERS = """\
max_batch_size { value: 64 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: %d }
"""

MODEL_CONFIG = """\
model_config_list {
  config {
    name: "%(name)s"
    base_path: "/models/%(name)s"
    model_platform: "tensorflow"
  }
}
"""


def export_saved_model(
    source: Searcher | DualEncoder,
    directory: str | os.PathLike,
    version: int,
    index: str | None = "brute_force",
    k: int = 10,
) -> Path:
    """Write a SavedModel that TensorFlow Serving loads, as `<directory>/<version>/`. Section 6.

    The version appears whole or not at all, so that a server may watch the folder. Beside it stand
    `models.config` and `batching_parameters.txt` for the server, unless they are there already, and
    in it warm-up requests (where `tensorflow-serving-api` is installed: the extra "serving").

    Signatures, all with a row a query: `search_by_text` (which is `serving_default` too),
    `search_by_image`, `search_by_text_and_image` and `search_by_embedding` answer `ids`, `scores`
    and `captions`, each `[n, k]`; `encode_text` and `encode_image` answer `embedding` `[n, dim]`.
    Their inputs are those of `signatures.make_signatures`. Pictures go through the image tower in
    float32, whatever `image_encoder` the model has.

    Args:
        source: a searcher, or for `index=None` a model.
        directory: the model's folder; its name is the model's name in the server.
        version: of the model, at least 1. A server serves the highest.
        index: "brute_force", exact search, which every server can do; "scann", for a server that
            has ScaNN's ops; or `None`, without a gallery and the signatures that search it.
        k: results of a search.

    Returns:
        The folder of the version.

    Raises:
        ValueError: the version exists, or an argument does not fit.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = DualEncoder(image, mm.text_tower(100, embedding_dim=8), text)
    >>> folder = export_saved_model(model, f"{tempfile.mkdtemp()}/mmret", version=1, index=None)
    >>> sorted(tf.saved_model.load(folder).signatures)  # of a searcher, also search_by_text...
    ['encode_image', 'encode_text', 'serving_default']
    """
    version, k = checked_count(version, "version"), checked_count(k, "k")
    if index not in ("brute_force", "scann", None):
        raise ValueError(f'index must be "brute_force", "scann" or None; got {index!r}')
    directory = Path(directory)
    name = directory.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(
            "the folder's name is the model's name in URLs and files: expected letters, digits, "
            f'".", "_" and "-"; got {name!r}'
        )
    if isinstance(source, DualEncoder) and index is not None:
        raise ValueError("a model alone has no gallery to search: give a Searcher, or index=None")
    model = source if isinstance(source, DualEncoder) else source.model
    if model.text_preprocessor is None:
        raise ValueError("this model has no text_preprocessor; give one to DualEncoder")
    gallery = None if index is None else GalleryGraph(source.index, source.items, k, index)

    archive = keras.export.ExportArchive()
    fusion = None if isinstance(source, DualEncoder) else source.fusion
    signatures = make_signatures(model, gallery, fusion)
    for signature, (function, inputs) in signatures.items():
        archive.add_endpoint(signature, function, inputs)  # the first is serving_default as well
    # Its tables. Variables are found through the functions; tracked, they are written twice.
    model.text_preprocessor.build(None)  # one that was loaded and not called is not "built"
    archive.track(model.text_preprocessor)
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"] if index == "scann" else [])

    with _new_version(directory, version) as folder:
        archive.write_out(str(folder), options=options, verbose=False)
        _write_warm_up(folder, name, signatures, model.embedding_dim)
        for file, text in (
            ("models.config", MODEL_CONFIG % {"name": name}),
            ("batching_parameters.txt", BATCHING_PARAMETERS % (os.cpu_count() or 1)),
        ):
            with contextlib.suppress(FileExistsError), open(directory / file, "x") as config:
                config.write(text)
    return directory / str(version)


def docker_command(directory: str | os.PathLike) -> str:
    """The shell command that serves an export's folder: gRPC on port 8500, REST on port 8501.
    Section 6.

    With `--enable_batching --batching_parameters_file=...` added, requests that come together are
    computed together. It is left out because a broken picture then fails the others of its batch.

    Args:
        directory: what `export_saved_model` was given; its name is the model's.

    Returns:
        One line, quoted for a shell.

    >>> print(docker_command("/srv/mmret"))  # doctest: +NORMALIZE_WHITESPACE
    docker run --rm -p 8500:8500 -p 8501:8501 -v /srv/mmret:/models/mmret:ro tensorflow/serving
    --model_config_file=/models/mmret/models.config
    """
    folder = Path(directory).resolve()
    inside = f"/models/{folder.name}"
    return shlex.join(
        [
            *("docker", "run", "--rm", "-p", "8500:8500", "-p", "8501:8501"),
            *("-v", f"{folder}:{inside}:ro", "tensorflow/serving"),
            f"--model_config_file={inside}/models.config",
        ]
    )


@contextlib.contextmanager
def _new_version(directory: Path, version: int) -> Iterator[Path]:
    """A folder to fill, which then becomes `<directory>/<version>`; after an exception it is gone.

    Servers look at folders whose names are numbers, and at no others.
    """
    final = directory / str(version)
    if final.exists():
        taken = [int(path.name) for path in directory.iterdir() if path.name.isdecimal()]
        raise ValueError(
            f"{final} exists, and a version is never replaced: the next free one is "
            f"{max(taken) + 1}"
        )
    partial = directory / f"{version}.partial"
    if partial.exists():  # of an export that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_warm_up(folder: Path, model: str, signatures: dict, dim: int) -> None:
    """A request for each signature and number of rows, in the file where TF Serving looks for them.

    Without it the first requests of users pay for what a graph does only once.
    """
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        warnings.warn(
            'no warm-up requests were written, which takes `pip install "mmret_tf[serving]"`: '
            "the first requests to the server will be slow",
            stacklevel=4,
        )
        return
    grey = tf.io.encode_png(tf.fill((64, 64, 3), tf.constant(128, tf.uint8))).numpy()
    one_row = {
        "text": ["warm up 预热"],
        "image": [grey],
        "text_weight": [0.5],
        "embedding": [[1.0] * dim],
    }
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as file:
        for signature, (_, inputs) in signatures.items():
            for rows in WARM_UP_ROWS:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model
                request.model_spec.signature_name = signature
                for name in (each.name for each in inputs):
                    request.inputs[name].CopyFrom(tf.make_tensor_proto(one_row[name] * rows))
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                file.write(log.SerializeToString())
