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
        open_searcher(tmp_path)


def test_missing_files_are_reported_as_scann_says_it(tmp_path):
    with pytest.raises(ValueError, match="names files outside the folder, or none"):
        open_searcher(tmp_path)
    (tmp_path / "scann_assets.pbtxt").write_text(ASSET)
    with pytest.raises(ValueError, match="ScaNN reports .*scann_config.pb"):
        open_searcher(tmp_path)
