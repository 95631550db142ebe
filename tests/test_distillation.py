"""A small tower learns to embed as a large one does, and nothing else changes."""

import numpy as np
import pytest
from conftest import make_wide_model

from mmret_tf.datasets import load_pairs
from mmret_tf.distillation import distill_image_tower
from mmret_tf.embeddings import row_cosines
from mmret_tf.preprocessing import load_batches
from mmret_tf.towers import image_tower


def test_a_student_learns_to_embed_as_its_teacher(text_preprocessor):
    pairs = load_pairs("scenes", "train", 64)
    teacher = make_wide_model(text_preprocessor, image_size=32)
    student = make_wide_model(
        text_preprocessor, image_size=32, width=16, trainable=True
    ).image_tower
    target = teacher.encode_images(pairs.image_paths)
    pictures = next(load_batches(pairs.image_paths, 32))
    before = row_cosines(student.predict_on_batch(pictures), target).mean()
    small = distill_image_tower(
        teacher, student, pairs, epochs=12, batch_size=16, learning_rate=0.01
    )
    after = row_cosines(small.encode_images(pairs.image_paths), target).mean()
    assert after > 0.9 > before
    assert small.text_tower is teacher.text_tower
    np.testing.assert_array_equal(target, teacher.encode_images(pairs.image_paths))


def test_a_student_must_fit_its_teacher(text_preprocessor):
    teacher = make_wide_model(text_preprocessor)
    larger = make_wide_model(text_preprocessor, image_size=32).image_tower
    narrower = image_tower(teacher.image_tower.backbone, image_size=16, embedding_dim=8)
    for student, message in [(larger, "image_size must be"), (narrower, "dim must be")]:
        with pytest.raises(ValueError, match=message):
            distill_image_tower(teacher, student, load_pairs("scenes", "train", 20))
