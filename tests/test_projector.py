"""What TensorBoard's projector is given: see also test_training, where a run writes it."""

import numpy as np
import pytest

from mmret_tf.projector import write_projector

PICTURES = np.zeros((2, 9, 9, 3), np.uint8)


def test_a_label_is_one_line(tmp_path):
    write_projector(tmp_path, np.eye(2), PICTURES, ["a dog\non a beach\t", "海滩上的狗"])
    lines = (tmp_path / "labels.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["a dog on a beach", "海滩上的狗"]


@pytest.mark.parametrize(
    ("embeddings", "images", "labels"),
    [(np.eye(2), PICTURES, ["one"]), (np.eye(3), PICTURES, ["a", "b"]), ([], [], [])],
)
def test_points_that_do_not_match_are_refused(embeddings, images, labels, tmp_path):
    with pytest.raises(ValueError, match="an embedding, an image and a label for each of 1 to"):
        write_projector(tmp_path / "logs", embeddings, images, labels)
    assert not (tmp_path / "logs").exists()
