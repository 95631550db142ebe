"""A small image tower taught by a large one (知识蒸馏), through Keras' own `fit`.

Sections 7.2 and 8.3 of the document: fewer weights, where `compression` takes fewer bits.
"""

import keras

from mmret_tf.data.pairs import Pairs
from mmret_tf.data.progress import is_interactive
from mmret_tf.models.dual_encoder import DualEncoder
from mmret_tf.models.towers.image import ImageTower


def distill_image_tower(
    model: DualEncoder,
    student: ImageTower,
    pairs: Pairs,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    verbose: int | None = None,
) -> DualEncoder:
    """Teach a smaller image tower to embed like the model's (知识蒸馏). Section 8.3; arXiv
    1503.02531.

    The student learns from pictures alone, with new crops and mirrors in each epoch: its embedding
    of a crop is pulled to the teacher's embedding of the same crop, by their cosine. The space
    stays the same, so the text tower needs no training, and a gallery keeps its embeddings.

    Args:
        model: The teacher; it is not changed.
        student: Made by `image_tower`, with the image_size, embedding_dim and members of the
            teacher's; it is trained in place.
        pairs: Pictures; their captions are not used.
        epochs: Passes over the pictures.
        batch_size: Pictures a step.
        learning_rate: Highest rate of Adam; it falls to 0 along a cosine.
        verbose: As for `keras.Model.fit`; by default a progress bar where output is interactive,
            and a line an epoch elsewhere.

    Returns:
        An encoder of the student and the model's own text tower and temperature.

    Raises:
        ValueError: The student differs in image_size, embedding_dim or members.

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> teacher = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> student = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> small = distill_image_tower(teacher, student, pairs, epochs=1, verbose=0)
    >>> small.image_tower is student, small.text_tower is teacher.text_tower
    (True, True)
    """
    teacher = model.image_tower
    for name in ("image_size", "embedding_dim", "members"):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError(f"the student's {name} must be the model's, {theirs}; got {ours}")

    def with_target(inputs, groups):
        return inputs["image"], teacher(inputs["image"], training=False)

    dataset = pairs.as_dataset(model, batch_size, training=True).map(with_target)
    steps = len(dataset)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    student.compile(keras.optimizers.Adam(schedule), loss=keras.losses.CosineSimilarity())
    student.optimizer.build(student.trainable_variables)  # or the first step is traced twice
    if verbose is None:
        verbose = 1 if is_interactive() else 2
    student.fit(
        dataset.repeat(),  # one iterator serves all epochs
        steps_per_epoch=steps,
        epochs=epochs,
        shuffle=False,  # the dataset does it
        verbose=verbose,
    )
    return DualEncoder(student, model.text_tower, model.temperature)
