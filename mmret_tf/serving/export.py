"""SavedModels for TensorFlow Serving (模型服务), and the files beside them. Section 6."""

import os
import re
import shlex
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mmret_tf._checks import checked_count
from mmret_tf._files import locked_folder, replaced_file
from mmret_tf._machine import cores
from mmret_tf.data.modalities import MODALITIES
from mmret_tf.models.encoder import Encoder, VariantEncoder
from mmret_tf.ranking.searcher import Searcher
from mmret_tf.serving.client import predict_request
from mmret_tf.serving.second_stage import SecondStageGraph
from mmret_tf.serving.signatures import GalleryGraph, Signature, make_signatures

# Numbers of rows in the requests that a server runs before it takes others.
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
    source: Searcher | Encoder,
    directory: str | os.PathLike,
    version: int,
    index: str | None = "brute_force",
    k: int = 10,
) -> Path:
    """Write a SavedModel that TensorFlow Serving loads, as `<directory>/<version>/`. Section 6.

    The version appears whole or not at all, so a server may watch the folder. Inside it are warm-up
    requests, if `tensorflow-serving-api` is installed (the extra "serving"); beside it
    `models.config` and `batching_parameters.txt` for the server, which are not overwritten.

    The signatures, for each modality X of the encoder and each two modalities, have a row a query:
    `search_by_X`, `search_by_Y_and_X` and `search_by_embedding` answer `ids`, `scores` and
    `captions`, each `[n, k]`; `encode_X` answers `embedding`, `[n, dim]`. The default is
    `search_by_text`. With a searcher that has a re-ranker, both stages of `search_by_X` are in the
    graph. Inputs: see `signatures.make_signatures`.

    A text tower of KerasHub needs the ops of `tensorflow_text`. TensorFlow Serving is built with
    them; a Python program imports the package before it loads the export.

    Args:
        source: A searcher, or for `index=None` an encoder. A `VariantEncoder` is exported with the
            float32 towers that it stands for: TensorFlow Serving cannot run a compressed one.
        directory: Folder of the model; its name is the model's name in the server.
        version: Version of the model, at least 1. A server serves the highest.
        index: "brute_force" for exact search in any server; "scann" for a server that has ScaNN's
            ops; `None` to leave out the gallery and the signatures that search it.
        k: Number of results.

    Returns:
        The folder of the version.

    Raises:
        ValueError: The version exists, or an argument does not fit.
        OSError: The files cannot be written, on a full disk, say.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8))
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
            f"the model's name in URLs must have letters, digits and ._- only; got {name!r}"
        )
    has_gallery = isinstance(source, Searcher)
    if index is not None and not has_gallery:
        raise ValueError("an encoder has no gallery to search: give a Searcher, or index=None")
    final, partial = directory / str(version), directory / f"{version}.partial"
    if final.exists():
        taken = max(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
        raise ValueError(f"{final} exists, and is never replaced; the next free one is {taken + 1}")
    encoder = source.encoder if has_gallery else source
    if isinstance(encoder, VariantEncoder):
        encoder = encoder.encoder
    gallery = second_stage = None
    if index is not None:
        candidates = source.rerank_k if source.reranker else 0
        gallery = GalleryGraph(source.index, source.items, k, index, candidates)
        second_stage = SecondStageGraph(source) if source.reranker else None
    signatures = make_signatures(encoder, gallery, second_stage)

    archive = keras.export.ExportArchive()
    for signature, (function, inputs) in signatures.items():
        archive.add_endpoint(signature, function, inputs)  # the first also serves as default
    # Variables are found through the functions; tracked, they would be written twice.
    for tower in encoder.towers.values():
        for table in tower.tables:
            archive.track(table)
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"] if index == "scann" else [])
    with locked_folder(partial):  # servers ignore it, because its name is not a number
        new = partial / "new"
        shutil.rmtree(new, ignore_errors=True)  # left by an export that was killed
        try:
            archive.write_out(str(new), options=options, verbose=False)
            _write_warm_up(new, name, signatures, encoder.embedding_dim)
            new.rename(final)
        except tf.errors.OpError as error:  # such as a full disk
            raise OSError(f"{final} cannot be written: {error.message}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    for file, text in (
        ("models.config", MODEL_CONFIG % {"name": name}),
        ("batching_parameters.txt", BATCHING_PARAMETERS % cores()),
    ):
        if not (directory / file).exists():
            with replaced_file(directory / file) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return final


def docker_command(directory: str | os.PathLike) -> str:
    """The shell command that serves an export: gRPC on port 8500, REST on port 8501. Section 6.

    With `--enable_batching --batching_parameters_file=...` added, requests that come together are
    computed together. It is left out because one broken picture then fails its whole batch.

    Args:
        directory: The folder that `export_saved_model` was given; its name is the model's.

    Returns:
        One line, quoted for a shell.

    >>> print(docker_command("/srv/mmret"))  # doctest: +NORMALIZE_WHITESPACE
    docker run --rm -p 8500:8500 -p 8501:8501 -v /srv/mmret:/models/mmret:ro tensorflow/serving
    --model_config_file=/models/mmret/models.config
    """
    folder = Path(directory).resolve()
    inside = f"/models/{folder.name}"
    ports, volume = "docker run --rm -p 8500:8500 -p 8501:8501 -v", f"{folder}:{inside}:ro"
    config = f"--model_config_file={inside}/models.config"
    return f"{ports} {shlex.join([volume, 'tensorflow/serving', config])}"


def _write_warm_up(folder: Path, model: str, signatures: Mapping[str, Signature], dim: int) -> None:
    """Write a request for each signature and number of rows to the file that the server runs first.

    Without them the first users wait for what a graph does only once.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        hint = 'no warm-up requests, so the first will be slow: pip install "mmret_tf[serving]"'
        return warnings.warn(hint, stacklevel=3)
    one_row: dict[str, Any] = {"embedding": [1.0] * dim}
    for name, modality in MODALITIES.items():  # signatures of those without a sample are left out
        if modality.sample is not None:
            one_row[name] = modality.read(modality.as_source(modality.sample))
            one_row[f"{name}_weight"] = 0.5
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as file:
        for signature, (_, inputs) in signatures.items():
            names = [each.name for each in inputs]
            for rows in WARM_UP_ROWS if set(names) <= set(one_row) else ():
                columns = {name: [one_row[name]] * rows for name in names}
                request = predict_request(model, signature, columns)
                log = prediction_log_pb2.PredictionLog(predict_log={"request": request})
                file.write(log.SerializeToString())
