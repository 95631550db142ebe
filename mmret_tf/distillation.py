"""A small image tower that a large one teaches (知识蒸馏), through Keras' own `fit`.

The other road to section 7.2's smaller models: fewer weights instead of fewer bits.
"""

from __future__ import annotations

import keras

from mmret_tf.datasets import PairDataset
from mmret_tf.dual_encoder import DualEncoder
from mmret_tf.towers import ImageTower


def distill_image_tower(
    model: DualEncoder,
    student: ImageTower,
    pairs: PairDataset,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> DualEncoder:
    """Teach a smaller image tower to embed as the model's does (知识蒸馏). Section 7.2 and 8.3;
    arXiv 1503.02531.

    The student learns from pictures alone, cropped and mirrored anew in each epoch: what the
    teacher makes of a crop is what it is to make of it, by the cosine. The space stays the same, so
    the text tower needs no training and a gallery's embeddings stay of use.

    Args:
        model: the teacher; it is read, not changed.
        student: from `image_tower`, with the model's image_size, embedding_dim and members; its
            weights are trained in place.
        pairs: pictures; their captions play no part.
        epochs, batch_size: of the student's `fit`.
        learning_rate: the highest, of Adam; it falls to 0 along a cosine.

    Returns:
        A dual encoder of the student and the model's own text tower.

    Raises:
        ValueError: the student differs in image_size, embedding_dim or members.

    >>> import contextlib, io
    >>> import mmret_tf as mm
    >>> from mmret_tf.training import build_model
    >>> pairs = mm.load_pairs("scenes", split="dev", size=4)
    >>> config = mm.TrainConfig(backbone="SmallCNN", weights="none", image_size=16, embedding_dim=8)
    >>> teacher = build_model(config, pairs.all_captions(), steps=1)
    >>> student = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> with contextlib.redirect_stdout(io.StringIO()):  # Keras' progress bar
    ...     small = distill_image_tower(teacher, student, pairs, epochs=1)
    >>> small.image_tower is student, small.text_tower is teacher.text_tower
    (True, True)
    """
    for name in ("image_size", "embedding_dim", "members"):
        ours, theirs = getattr(student, name), getattr(model, name)
        if ours != theirs:
            raise ValueError(f"the student's {name} must be the model's, {theirs}; got {ours}")

    def with_target(inputs, groups):
        return inputs["image"], model.image_tower(inputs["image"], training=False)

    dataset = pairs.as_dataset(model, batch_size, training=True).map(with_target)
    steps = len(dataset)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    student.compile(keras.optimizers.Adam(schedule), loss=keras.losses.CosineSimilarity())
    # Repeated, one iterator serves all epochs, and shuffles by itself.
    student.fit(dataset.repeat(), steps_per_epoch=steps, epochs=epochs, shuffle=False)
    return DualEncoder(student, model.text_tower, model.text_preprocessor)
