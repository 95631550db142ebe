"""Missing modalities (模态缺失): fill in what an item lacks, or combine one model a modality.

Section 7.2 and 8.2 of the document name the ways: a default or a mean value (填充), a prediction
from the modality that is there (预测), separate models combined (组合). All take the inputs and
masks of `fusion`, vectors `[batch, width]`, and need no mask from the user: a row of zeros is not
there.

An imputer stands before a fusion, `FusedEncoder(..., imputer=MeanImputer())`, and gives back the
same dict with each absent row filled. What it fills in comes from complete rows: `adapt` shows it
them, and a `ModalityPredictor` is trained on them.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from mmret_tf.fusion import Fusion, any_of, known_vectors, presence
from mmret_tf.towers import UnitLength, unit_length


class Imputer(layers.Layer):
    """What the imputers share: rows that are there stay; `fill(name, inputs, present)` gives
    `[batch, width]` for the others, from inputs of which what is absent has become zeros."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True  # Keras' masks of the inputs come as `mask`; here they end

    def build(self, input_shape: dict):
        raise ValueError(
            f"{type(self).__name__} has seen nothing yet to fill in from: call adapt first, with "
            "complete rows"
        )

    def start(self, widths: dict[str, int]) -> None:
        """Make the weights, for modalities of these `widths`; for `adapt`, and for a layer that is
        loaded."""
        self.widths = {name: widths[name] for name in sorted(widths)}
        self.make_weights(self.widths)
        self.built = True

    def get_build_config(self) -> dict:
        return {"widths": self.widths}

    def build_from_config(self, config: dict) -> None:
        self.start(config["widths"])

    def call(self, inputs, mask=None):
        known, present = known_vectors(inputs, mask, self.widths)
        return {
            name: ops.where(present[name][:, None], known[name], self.fill(name, known, present))
            for name in self.widths
        }

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape, **kwargs):
        batch = next(iter(input_shape.values()))[0]
        return {name: (batch, width) for name, width in self.widths.items()}


@keras.saving.register_keras_serializable("mmret_tf")
class ConstantImputer(Imputer):
    """Fill in one number, in all places (默认值填充). Section 8.2.

    Call: `{name: [batch, width]}` -> the same, float32, with each absent row (zeros) filled.

    Args:
        value: the number.

    >>> rows = {"image": ops.array([[0.6, 0.8]]), "text": ops.array([[0.0, 0.0]])}
    >>> ConstantImputer(0.5)(rows)["text"].numpy().tolist()
    [[0.5, 0.5]]
    """

    def __init__(self, value: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def build(self, input_shape: dict):
        self.start({name: shape[-1] for name, shape in input_shape.items()})

    def make_weights(self, widths):
        """There are none."""

    def fill(self, name, known, present):
        return ops.full_like(known[name], self.value)

    def get_config(self) -> dict:
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable("mmret_tf")
class MeanImputer(Imputer):
    """Fill in the mean of the rows that `adapt` saw (均值填充). Section 8.2.

    Call: as `ConstantImputer`, after `adapt`; ValueError before.

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
        """Take the mean of each modality, over the rows that are there.

        Args:
            inputs: `{name: [n, width]}`; a row of zeros is not there.

        Raises:
            ValueError: a modality has no row.
        """
        if not self.built:
            self.start(_widths(inputs))
        for name, present in presence(inputs).items():
            rows = np.asarray(inputs[name])[ops.convert_to_numpy(present)]
            if not len(rows):
                raise ValueError(f"there is no row of {name} to take the mean of")
            self.means[name].assign(rows.mean(axis=0))

    def fill(self, name, known, present):
        return ops.broadcast_to(self.means[name], ops.shape(known[name]))


@keras.saving.register_keras_serializable("mmret_tf")
class NearestImputer(Imputer):
    """Fill in from the most similar complete rows that `adapt` saw (最近邻填充). Section 8.2.

    Of the complete rows, the `neighbours` whose present modalities have the highest sum of cosine
    similarities (余弦相似度) give the mean of what is absent.

    Call: as `ConstantImputer`, after `adapt`; ValueError before.

    Args:
        neighbours: how many rows the mean is of, at least 1.

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
        self.rows = 0

    def make_weights(self, widths):
        self.memory = {
            name: self.add_weight((self.rows, width), "zeros", trainable=False, name=name)
            for name, width in widths.items()
        }

    def adapt(self, inputs: dict[str, np.ndarray]) -> None:
        """Keep the complete rows; they become weights of the layer.

        Args:
            inputs: `{name: [n, width]}`; rows that lack a modality (zeros) are left out.

        Raises:
            ValueError: fewer complete rows than `neighbours`, or it has its rows already.
        """
        if self.built:
            raise ValueError("this NearestImputer has its rows already: make a new one")
        complete = _complete_rows(inputs)
        self.rows = len(next(iter(complete.values())))
        if self.rows < self.neighbours:
            raise ValueError(
                f"{self.neighbours} neighbours need as many complete rows; got {self.rows}"
            )
        self.start(_widths(complete))
        for name, rows in complete.items():
            self.memory[name].assign(rows)

    def fill(self, name, known, present):
        scores = sum(
            ops.matmul(unit_length(known[other]), ops.transpose(unit_length(self.memory[other])))
            for other in self.widths
        )
        _, rows = ops.top_k(scores, self.neighbours)
        return ops.mean(ops.take(self.memory[name], rows, axis=0), axis=1)

    def get_config(self) -> dict:
        return {**super().get_config(), "neighbours": self.neighbours}

    def get_build_config(self) -> dict:
        return {**super().get_build_config(), "rows": self.rows}

    def build_from_config(self, config: dict) -> None:
        self.rows = config["rows"]
        super().build_from_config(config)


@keras.saving.register_keras_serializable("mmret_tf")
class ModalityPredictor(Imputer):
    """Fill in what small networks predict from the modalities that are there (模态预测): text from
    image, and image from text. Section 8.2.

    `adapt` trains a network for each direction on complete rows, with the document's cosine
    loss. Where several modalities are there, the mean of what they predict is filled in.

    Call: as `ConstantImputer`, after `adapt`; ValueError before. A network's predictions have unit
    length.

    Args:
        units: width of the one hidden layer.

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
                    layers.Dense(self.units, activation="gelu"),
                    layers.Dense(widths[target]),
                    UnitLength(),
                ]
            )
            for source in widths
            for target in widths
            if source != target
        }

    def adapt(
        self,
        inputs: dict[str, np.ndarray],
        epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
    ) -> None:
        """Train on complete rows: each direction by itself, with Adam.

        Args:
            inputs: `{name: [n, width]}`; rows that lack a modality (zeros) are left out.
            epochs: passes over the rows.
            batch_size: rows a step.
            learning_rate: of Adam.

        Raises:
            ValueError: no row has every modality.
        """
        complete = _complete_rows(inputs)
        if not self.built:
            self.start(_widths(complete))
        for direction, network in self.networks.items():
            source, target = direction.split("_to_")
            network.compile(keras.optimizers.Adam(learning_rate), keras.losses.CosineSimilarity())
            network.fit(
                complete[source],
                complete[target],
                epochs=epochs,
                batch_size=batch_size,
                verbose=0,
            )

    def fill(self, name, known, present):
        guesses, sources = 0.0, 0.0
        for source in self.widths:
            if source != name:
                share = ops.cast(present[source], "float32")[:, None]
                guesses = guesses + share * self.networks[f"{source}_to_{name}"](known[source])
                sources = sources + share
        return guesses / ops.maximum(sources, 1)

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("mmret_tf")
class EnsembleFusion(Fusion):
    """Separate models, one a modality, combined (模型组合): the sum of the unit vectors that the
    models of the present modalities give. Section 8.2.

    Call: `{name: [batch, width]}` -> float32 `[batch, dim]`, unit rows.

    Args:
        models: for each modality a model `[batch, width] -> [batch, dim]` that was trained alone.

    Raises:
        ValueError: the models give different widths; in a call, other modalities than they are for.

    >>> double = keras.Sequential([keras.Input((2,)), layers.Rescaling(2.0)])
    >>> layer = EnsembleFusion({"image": double, "text": double})
    >>> rows = {"image": ops.array([[3.0, 4.0], [1.0, 0.0]]), "text": ops.array([[0.0, 0.0]] * 2)}
    >>> layer(rows).numpy().round(3)  # of the images alone
    array([[0.6, 0.8],
           [1. , 0. ]], dtype=float32)
    """

    def __init__(self, models: dict[str, keras.Model], **kwargs):
        dims = {model.output_shape[-1] for model in models.values()}
        if len(dims) != 1:
            raise ValueError(f"the models must give vectors of one width; got {sorted(dims)}")
        super().__init__(dims.pop(), **kwargs)
        self.models = models

    def make_weights(self, widths):
        if set(widths) != set(self.models):
            raise ValueError(f"there are models for {list(self.models)}; got {list(widths)}")

    def fuse(self, inputs, present, training):
        return sum(
            unit_length(model(inputs[name], training=training))
            * ops.cast(present[name], "float32")[:, None]
            for name, model in self.models.items()
        )

    def get_config(self) -> dict:
        models = {name: keras.saving.serialize_keras_object(m) for name, m in self.models.items()}
        return {**layers.Layer.get_config(self), "models": models}

    @classmethod
    def from_config(cls, config: dict) -> EnsembleFusion:
        models = {
            name: keras.saving.deserialize_keras_object(model)
            for name, model in config.pop("models").items()
        }
        return cls(models, **config)


@keras.saving.register_keras_serializable("mmret_tf")
class ModalityDropout(layers.Layer):
    """In training, hide modalities at random (模态丢弃), so that a fusion learns to do without any.
    Section 8.2; like ModDrop, arXiv 1501.00102.

    Call: masks as `fusion.presence` gives them, booleans `{name: [batch] or [batch, length]}` ->
    the same, with fewer rows that are there. Each
    modality of a row is hidden with probability `rate`, but for one, drawn anew, that stays.

    Args:
        rate: from 0 to below 1.

    Raises:
        ValueError: another rate.

    >>> present = {"image": ops.array([True, True]), "text": ops.array([True, False])}
    >>> hidden = ModalityDropout(0.9)(present, training=True)
    >>> ops.logical_or(hidden["image"], hidden["text"]).numpy().tolist()  # one stays
    [True, True]
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be from 0 to below 1; got {rate}")
        self.rate = rate
        self.generator = keras.random.SeedGenerator()
        self.built = True

    def call(self, present, training=False):
        if not training or not self.rate:
            return present
        there = ops.stack([any_of(each) for each in present.values()], axis=1)
        shape = ops.shape(there)
        lots = keras.random.uniform(shape, seed=self.generator) * ops.cast(there, "float32")
        stays = ops.equal(lots, ops.max(lots, axis=1, keepdims=True))
        stays = stays | (keras.random.uniform(shape, seed=self.generator) >= self.rate)
        kept = {}
        for column, (name, each) in enumerate(present.items()):
            keep = stays[:, column]
            kept[name] = each & (keep if len(each.shape) == 1 else keep[:, None])
        return kept

    def get_config(self) -> dict:
        return {**super().get_config(), "rate": self.rate}


def _complete_rows(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows that have every modality; ValueError if there are none."""
    there = [ops.convert_to_numpy(present) for present in presence(inputs).values()]
    complete = np.all(there, axis=0)
    if not complete.any():
        raise ValueError("there is no row with every modality to learn from")
    return {name: np.asarray(rows, np.float32)[complete] for name, rows in inputs.items()}


def _widths(inputs: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: rows.shape[-1] for name, rows in inputs.items()}
