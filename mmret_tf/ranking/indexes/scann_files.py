"""ScaNN's package and files, imported and read only when an index asks for them."""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._files import open_array
from mmret_tf._machine import cores, quiet_stderr
from mmret_tf.ranking.indexes.scann_protobufs import check_protobufs

# Dimensions that share a code of four bits.
DIMENSIONS_PER_CODE, CODES = 2, 16

ASSETS = re.compile(r'(assets \{\n  asset_type: \w+\n  asset_path: "\w+\.(npy|pb)"\n\}\n)+')


def import_scann() -> Any:
    """ScaNN's module of NumPy functions; ImportError in one line if it cannot be imported."""
    try:
        with quiet_stderr():
            from scann.scann_ops.py import scann_ops_pybind
    except Exception as error:  # TensorFlow's NotFoundError beside another TensorFlow
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImportError(f"ScaNN cannot be imported ({reason}), see `mmret doctor`") from error
    return scann_ops_pybind


def build_searcher(builder: Any) -> Any:
    """ScaNN's searcher from its builder, trained and searching on all cores."""
    with quiet_stderr():
        searcher = builder.set_n_training_threads(cores()).build()
    searcher.set_num_threads(cores())
    return searcher


def open_searcher(folder: Path, builder: Any, n: int, dim: int, leaves: int) -> Any:
    """Open ScaNN's files without its own loader, which unpickles ids.

    Its C++ code trusts its files, so they are checked before.

    Args:
        folder: The files.
        builder: ScaNN's builder with the settings of the index.
        n, dim: Number and width of the embeddings.
        leaves: Number of leaves.

    Raises:
        ValueError: The files name others, hold something else, or ScaNN cannot read them.
        ImportError: ScaNN cannot be imported.
    """
    path = folder / "scann_assets.pbtxt"
    assets = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not ASSETS.fullmatch(assets):
        raise ValueError("scann_assets.pbtxt names files outside the folder, or none")
    tokens = open_array(folder / "datapoint_to_token.npy", (n,), "int32")
    codes = open_array(folder / "hashed_dataset.npy", (n, -(-dim // DIMENSIONS_PER_CODE)), "uint8")
    if not (tokens.min() >= 0 and tokens.max() < leaves and codes.max() < CODES):
        raise ValueError("the leaves or the codes are out of their range")
    check_protobufs(folder, builder, dim, leaves, CODES)
    scann = import_scann()
    try:
        with quiet_stderr():
            searcher = scann.ScannSearcher(scann.scann_pybind.ScannNumpy(str(folder), assets))
    except RuntimeError as error:
        raise ValueError(f"ScaNN reports {error}") from None
    searcher.set_num_threads(cores())
    return searcher


def tensors(searcher: Any, vectors: np.ndarray) -> list:
    """A searcher's state in the order of `scann_ops.ScannState`, which TensorFlow's op takes."""
    with tempfile.TemporaryDirectory() as folder:
        searcher.serialize(folder, relative_path=True)

        def read(name: str, missing: Any) -> Any:
            path = Path(folder, name)
            if not path.exists():
                return missing
            return np.load(path) if path.suffix == ".npy" else [path.read_bytes()]

        return [
            read("scann_config.pb", ""),
            read("serialized_partitioner.pb", ""),
            read("datapoint_to_token.npy", np.int32(0)),
            read("ah_codebook.pb", ""),
            read("hashed_dataset.npy", np.uint8(0)),
            *(np.int8(0), np.float32(0), np.float32(0)),  # int8 vectors, their scales and norms
            np.asarray(vectors),
        ]
