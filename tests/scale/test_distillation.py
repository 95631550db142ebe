"""A small tower learns to embed as a large one does, and nothing else changes."""

import numpy as np
import pytest
from conftest import make_wide_model

from mmret_tf.data import load_pairs
from mmret_tf.models import image_tower
from mmret_tf.models.towers.tower import input_batches
from mmret_tf.scale import distill_image_tower
from mmret_tf.similarity.vectors import row_cosines


def test_a_student_learns_to_embed_as_its_teacher(text_preprocessor):
    pairs = load_pairs("scenes", "train", 64)
    teacher = make_wide_model(text_preprocessor, width=32)
    student = make_wide_model(text_preprocessor, width=16, trainable=True).image_tower
    [pictures] = input_batches(teacher.image_tower, pairs.first_sources)
    target = teacher.image_tower.predict_on_batch(pictures)
    before = row_cosines(student.predict_on_batch(pictures), target).mean()
    small = distill_image_tower(
        teacher, student, pairs, epochs=12, batch_size=16, learning_rate=0.01
    )
    after = row_cosines(small.image_tower.predict_on_batch(pictures), target).mean()
    assert after > 0.9 > before
    assert small.image_tower is student and small.text_tower is teacher.text_tower
    assert small.temperature is teacher.temperature
    np.testing.assert_array_equal(target, teacher.image_tower.predict_on_batch(pictures))


def test_a_student_must_fit_its_teacher(wide_model, photos):
    backbone = wide_model.image_tower.backbone
    for change, message in [
        ({"image_size": 32}, "image_size must be the model's, 16; got 32"),
        ({"embedding_dim": 8}, "embedding_dim must be the model's, 32; got 8"),
        ({"members": 2}, "members must be the model's, 1; got 2"),
    ]:
        student = image_tower(backbone, **({"image_size": 16, "embedding_dim": 32} | change))
        with pytest.raises(ValueError, match=message):
            distill_image_tower(wide_model, student, photos)
