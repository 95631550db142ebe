"""ScaNN's package and files, imported and read only when an index asks for them."""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mmret_tf._machine import cores, quiet_stderr

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


def open_searcher(folder: Path) -> Any:
    """Open ScaNN's files without its own loader, which unpickles ids.

    Raises:
        ValueError: The files name others, or ScaNN cannot read them.
        ImportError: ScaNN cannot be imported.
    """
    path = folder / "scann_assets.pbtxt"
    assets = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not ASSETS.fullmatch(assets):
        raise ValueError("scann_assets.pbtxt names files outside the folder, or none")
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
