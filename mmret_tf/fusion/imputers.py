"""Imputers (模态填充): fill in the modalities that an item lacks. Sections 7.2 and 8.2.

Section 8.2 names a default or mean value (数据填充) and a prediction from the other modalities
(模态预测). An imputer stands before a late fusion, `FusedEncoder(..., imputer=MeanImputer())`. It
takes the inputs of a late fusion, vectors `[batch, width]`, and returns the same dict with each
absent row filled. All but the constant one learn from complete rows: call `adapt` first.
"""

import itertools

import keras
import numpy as np
from keras import layers, ops

from mmret_tf.fusion.fusion import ModalityLayer, presence
from mmret_tf.models.layers import track
from mmret_tf.similarity.vectors import unit_length


class Imputer(ModalityLayer):
    """The base class of imputers: present rows stay as they are.

    A subclass creates its weights in `make_weights(widths)`. Its `fill(name, known)` returns
    `[batch, width]` for the absent rows of a modality; absent rows in `known` are zeros.

    Args:
        kwargs: As of `keras.layers.Layer`.
    """

    def build(self, input_shape: dict):
        raise ValueError(
            f"{type(self).__name__} has nothing to fill in yet: call adapt with complete rows first"
        )

    def start(self, shapes: dict[str, tuple]) -> None:
        """Create the weights, in `adapt` and when a saved layer is loaded.

        Args:
            shapes: Of the rows of each modality, `(n, width)`.
        """
        if not self.built:
            self.shapes = {name: list(shape) for name, shape in shapes.items()}
            super().build(shapes)
            self.built = True

    def get_build_config(self) -> dict | None:
        return {"shapes": self.shapes} if self.built else None

    def build_from_config(self, config: dict) -> None:
        self.start(**config)

    def compute_output_spec(self, inputs, mask=None) -> dict:
        batch = next(iter(inputs.values())).shape[0]
        widths = {name: each.shape[-1] for name, each in inputs.items()}
        widths = getattr(self, "widths", widths)
        return {
            name: keras.KerasTensor((batch, width), self.compute_dtype)
            for name, width in widths.items()
        }

    def call(self, inputs, mask=None):
        known = self.known_vectors(inputs, mask)
        return {
            name: ops.where(presence(rows)[:, None], rows, self.fill(name, known))
            for name, rows in known.items()
        }


@keras.saving.register_keras_serializable("mmret_tf")
class ConstantImputer(Imputer):
    """Fill in one number everywhere (默认值填充). Section 8.2.

    Call: `{name: [batch, width]}` -> the same, float32, with each absent row (zeros) filled.

    Args:
        value: The number.

    >>> rows = {"image": ops.array([[0.6, 0.8]]), "text": ops.array([[0.0, 0.0]])}
    >>> ConstantImputer(0.5)(rows)["text"].numpy().tolist()
    [[0.5, 0.5]]
    """

    def __init__(self, value: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def build(self, input_shape: dict):
        self.start(input_shape)

    def fill(self, name, known):
        return ops.full_like(known[name], self.value)

    def get_config(self) -> dict:
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable("mmret_tf")
class MeanImputer(Imputer):
    """Fill in the mean of the rows that `adapt` saw (均值填充). Section 8.2.

    Call: as for `ConstantImputer`, after `adapt`; ValueError before.

    >>> imputer = MeanImputer()
    >>> imputer.adapt({"image": np.eye(2), "text": np.array([[1.0, 0.0], [0.0, 0.0]])})
    >>> rows = {"image": ops.array([[0.0, 0.0]]), "text": ops.array([[0.0, 1.0]])}
    >>> imputer(rows)["image"].numpy().tolist()
    [[0.5, 0.5]]
    """

    def make_weights(self, widths):
        self.means = {
            name: self.add_weight((width,), "zeros", trainable=False, name=f"{name}_mean")
            for name, width in widths.items()
        }

    def adapt(self, inputs: dict[str, np.ndarray]) -> None:
        """Compute the mean of each modality over the rows that have it.

        Args:
            inputs: `{name: [n, width]}`; rows of zeros are absent.

        Raises:
            ValueError: A modality is absent in all rows.
        """
        self.start({name: rows.shape for name, rows in inputs.items()})
        for name, rows in inputs.items():
            rows = rows[np.any(rows, axis=1)]
            if not len(rows):
                raise ValueError(f"{name} is absent in all rows: there is nothing to average")
            self.means[name].assign(rows.mean(axis=0))

    def fill(self, name, known):
        mean = ops.cast(self.means[name], self.compute_dtype)
        return ops.broadcast_to(mean, ops.shape(known[name]))


@keras.saving.register_keras_serializable("mmret_tf")
class NearestImputer(Imputer):
    """Fill in from the most similar complete rows that `adapt` saw (最近邻填充). Section 8.2.

    Similarity is the sum of the cosines (余弦相似度) of the present modalities. The absent modality
    becomes the mean over the `neighbours` most similar rows.

    Call: as for `ConstantImputer`, after `adapt`; ValueError before.

    Args:
        neighbours: Number of rows to average, at least 1.

    Raises:
        ValueError: `neighbours` is below 1.

    >>> imputer = NearestImputer(neighbours=1)
    >>> imputer.adapt({"image": np.eye(2), "text": np.array([[0.6, 0.8], [0.8, 0.6]])})
    >>> rows = {"image": ops.array([[0.1, 1.0]]), "text": ops.array([[0.0, 0.0]])}
    >>> imputer(rows)["text"].numpy()
    array([[0.8, 0.6]], dtype=float32)
    """

    def __init__(self, neighbours: int = 5, **kwargs):
        super().__init__(**kwargs)
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1; got {neighbours}")
        self.neighbours = neighbours

    def make_weights(self, widths):
        self.memory = {
            name: self.add_weight(self.shapes[name], "zeros", trainable=False, name=name)
            for name in widths
        }

    def adapt(self, inputs: dict[str, np.ndarray]) -> None:
        """Keep the complete rows as weights of the layer.

        Args:
            inputs: `{name: [n, width]}`; rows that lack a modality (zeros) are left out.

        Raises:
            ValueError: Fewer complete rows than `neighbours`, or a second call.
        """
        if self.built:
            raise ValueError("this NearestImputer already has its rows: make a new one")
        complete = _complete_rows(inputs)
        n = len(next(iter(complete.values())))
        if n < self.neighbours:
            raise ValueError(f"expected at least {self.neighbours} complete rows; got {n}")
        self.start({name: rows.shape for name, rows in complete.items()})
        for name, rows in complete.items():
            self.memory[name].assign(rows)

    def fill(self, name, known):
        scores = sum(
            ops.matmul(unit_length(known[other]), ops.transpose(unit_length(rows)))
            for other, rows in self.memory.items()
        )
        _, best = ops.top_k(scores, self.neighbours)
        neighbours = ops.take(self.memory[name], best, axis=0)
        return ops.cast(ops.mean(neighbours, axis=1), self.compute_dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "neighbours": self.neighbours}


@keras.saving.register_keras_serializable("mmret_tf")
class ModalityPredictor(Imputer):
    """Fill in the predictions of small networks (模态预测): text from image, and image from text.
    Section 8.2.

    `adapt` trains one network per direction on complete rows, with the document's cosine loss. If
    several modalities are present, the mean of their predictions is filled in.

    Call: as for `ConstantImputer`, after `adapt`; ValueError before. The predictions of a network
    have unit length.

    Args:
        units: Width of the hidden layer.

    >>> keras.utils.set_random_seed(0)
    >>> predictor = ModalityPredictor(units=64)
    >>> rows = np.eye(2, dtype="float32")
    >>> predictor.adapt({"image": rows, "text": rows[::-1]}, epochs=10, learning_rate=0.1)
    >>> filled = predictor({"image": ops.array(rows), "text": ops.zeros((2, 2))})
    >>> filled["text"].numpy().argmax(axis=1).tolist()  # as the rows of text
    [1, 0]
    """

    def __init__(self, units: int = 512, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def make_weights(self, widths):
        self.networks = {
            f"{source}_to_{target}": keras.Sequential(
                [
                    keras.Input((widths[source],)),
                    layers.Dense(self.units, activation="gelu", dtype=self.dtype_policy),
                    layers.Dense(widths[target], dtype=self.dtype_policy),
                    layers.UnitNormalization(dtype=self.dtype_policy),
                ]
            )
            for source, target in itertools.permutations(widths, 2)
        }
        track(self, "network", self.networks.values())

    def adapt(
        self,
        inputs: dict[str, np.ndarray],
        epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
    ) -> None:
        """Train each direction on its own, with Adam.

        Args:
            inputs: `{name: [n, width]}`; rows that lack a modality (zeros) are left out.
            epochs: Number of passes over the rows.
            batch_size: Rows a step.
            learning_rate: Step size of Adam.

        Raises:
            ValueError: No row has every modality.
        """
        complete = _complete_rows(inputs)
        self.start({name: rows.shape for name, rows in complete.items()})
        for source, target in itertools.permutations(self.widths, 2):
            network = self.networks[f"{source}_to_{target}"]
            network.compile(keras.optimizers.Adam(learning_rate), keras.losses.CosineSimilarity())
            network.fit(complete[source], complete[target], batch_size, epochs, verbose=0)

    def fill(self, name, known):
        guesses, sources = 0.0, 0.0
        for source, rows in known.items():
            if source != name:
                share = ops.cast(presence(rows), self.compute_dtype)[:, None]
                guesses = guesses + share * self.networks[f"{source}_to_{name}"](rows)
                sources = sources + share
        return guesses / ops.maximum(sources, 1)

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


def _complete_rows(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows that have every modality; ValueError if there are none."""
    complete = np.all([np.any(rows, axis=1) for rows in inputs.values()], axis=0)
    if not complete.any():
        raise ValueError("no row has every modality: there is nothing to learn from")
    return {name: np.asarray(rows, np.float32)[complete] for name, rows in inputs.items()}
