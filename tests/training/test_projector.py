"""The files of TensorBoard's projector. In `test_trainer`, a run writes them."""

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins import projector

from mmret_tf.data.modalities import get_modality
from mmret_tf.training.projector import THUMBNAIL, write_projector


@pytest.fixture
def sources(tmp_path):
    """Five pictures; the last one is gone."""
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, colour in zip(paths, ("red", "lime", "blue", "white"), strict=False):
        Image.new("RGB", (60, 50), colour).save(path)
    return get_modality("image").sources(paths)


def test_each_point_has_a_vector_a_label_and_a_thumbnail(sources, tmp_path):
    vectors = np.arange(10).reshape(5, 2) / 4
    labels = ["a dog\non a beach\t", "海滩上的狗", "c", "d", "e"]
    write_projector(tmp_path / "logs", vectors, "image", sources, labels)
    saved = np.loadtxt(tmp_path / "logs" / "vectors.tsv", delimiter="\t")
    np.testing.assert_array_equal(saved, vectors)
    lines = (tmp_path / "logs" / "labels.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["a dog on a beach", "海滩上的狗", "c", "d", "e"]
    sheet = np.asarray(Image.open(tmp_path / "logs" / "thumbnails.png"))
    assert sheet.shape == (3 * THUMBNAIL, 3 * THUMBNAIL, 3)  # a square of 9 places
    centres = sheet[THUMBNAIL // 2 :: THUMBNAIL, 5::THUMBNAIL].reshape(9, 3).tolist()
    red, lime, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    assert centres == [red, lime, blue, white, [211, 211, 211], *[[0, 0, 0]] * 4]
    config = projector.ProjectorConfig()
    text_format.Parse((tmp_path / "logs" / "projector_config.pbtxt").read_text(), config)
    [points] = config.embeddings
    assert (points.tensor_name, points.tensor_path) == ("image", "vectors.tsv")


@pytest.mark.parametrize(("n_vectors", "n_sources", "n_labels"), [(2, 2, 1), (3, 2, 2), (0, 0, 0)])
def test_points_that_do_not_match_are_refused(n_vectors, n_sources, n_labels, sources, tmp_path):
    with pytest.raises(ValueError, match="an embedding, a source and a label for each of 1 to"):
        write_projector(
            tmp_path / "logs", np.eye(n_vectors), "image", sources[:n_sources], ["a"] * n_labels
        )
    assert not (tmp_path / "logs").exists()
