"""ScaNN's files, and the log of its C++ code, which only debugging shows."""

import numpy as np
import pytest

from mmret_tf.ranking import ScannConfig, ScannIndex
from mmret_tf.ranking.indexes.scann_files import open_searcher

ASSET = 'assets {\n  asset_type: AH_CENTERS\n  asset_path: "ah_codebook.pb"\n}\n'


@pytest.mark.parametrize("debug", ["", "1"])
def test_the_log_of_the_training_is_shown_for_debugging_alone(debug, capfd, monkeypatch):
    monkeypatch.setenv("MMRET_DEBUG", debug)
    rows = np.random.default_rng(0).normal(size=(200, 8))
    ScannIndex.build(rows, range(200), queries=rows, config=ScannConfig(leaves=10), seconds=0)
    assert ("partitioner" in capfd.readouterr().err) == bool(debug)


@pytest.mark.parametrize("path", ["/etc/passwd.npy", "../ah_codebook.pb", "\\057a.npy", "a.pkl"])
def test_assets_outside_the_folder_are_refused(path, tmp_path):
    (tmp_path / "scann_assets.pbtxt").write_text(ASSET.replace("ah_codebook.pb", path))
    with pytest.raises(ValueError, match="names files outside the folder, or none"):
        open_searcher(tmp_path, None, 4, 2, 1)


def save_arrays(folder, tokens=(0, 0, 0, 0), codes=((3,), (15,), (0,), (1,))):
    np.save(folder / "datapoint_to_token.npy", np.array(tokens, np.int32))
    np.save(folder / "hashed_dataset.npy", np.array(codes, np.uint8))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="names files outside the folder, or none"):
        open_searcher(tmp_path, None, 4, 2, 1)
    (tmp_path / "scann_assets.pbtxt").write_text(ASSET)
    with pytest.raises(ValueError, match="datapoint_to_token.npy is not a NumPy array"):
        open_searcher(tmp_path, None, 4, 2, 1)
    save_arrays(tmp_path)
    with pytest.raises(ValueError, match="scann_config.pb is missing or damaged"):
        open_searcher(tmp_path, None, 4, 2, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": (0, 0, 0)}, "must hold int32"),
        ({"tokens": (0, 0, 1, 0)}, "out of their range"),
        ({"tokens": (0, 0, -1, 0)}, "out of their range"),
        ({"codes": ((3,), (16,), (0,), (1,))}, "out of their range"),
        ({"codes": ((3, 0), (1, 1), (0, 0), (1, 0))}, "must hold uint8"),
    ],
)
def test_arrays_are_checked_before_scann_trusts_them(arrays, message, tmp_path):
    (tmp_path / "scann_assets.pbtxt").write_text(ASSET)
    save_arrays(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        open_searcher(tmp_path, None, 4, 2, 1)
