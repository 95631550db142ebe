"""What all fusions share (模态融合): the interface, missing vectors, unit length. Section 2.3.

Late fusion (晚期融合, in `late`) joins one finished vector per modality. Early fusion (早期融合)
joins regions and words before one encoder reads them, and hybrid fusion (混合融合) lets regions and
words attend to each other before it joins the results late; both are in `sequences`.

All are Keras layers with one interface. Inputs are a dict, `{"image": ..., "text": ...}` or any
other names: vectors `[batch, width]`, or for early and hybrid fusion also sequences of vectors
`[batch, length, width]`. Any of them may be absent: a vector of zeros is absent, as in
`keras.layers.Masking`, and a modality that is not in the dict is absent in all rows. A Keras mask,
`[batch]` or `[batch, length]`, makes zeros of the vectors that it hides. Absent vectors never
change a result, and a row where everything is absent becomes zeros.
"""

import keras
from keras import layers, ops

from mmret_tf.models.layers import sinusoidal_positions
from mmret_tf.similarity.vectors import unit_length


def presence(vectors):
    """Which vectors are present: booleans `[batch]`, or `[batch, length]` for sequences.

    >>> presence(ops.array([[0.0, 0.0], [0.6, 0.8]])).numpy().tolist()
    [False, True]
    """
    return ops.any(ops.not_equal(vectors, 0), axis=-1)


def present_rows(vectors):
    """Which rows have the modality at all: booleans `[batch]`, also for sequences."""
    return ops.any(ops.not_equal(vectors, 0), axis=tuple(range(1, len(vectors.shape))))


class ModalityLayer(layers.Layer):
    """The base class of fusions and imputers, which know the width of each modality.

    A subclass creates its weights and layers in `make_weights(widths)`.

    Args:
        kwargs: As of `keras.layers.Layer`.

    Attributes:
        widths: Width of each modality, in alphabetical order, once the layer is built.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs, mask=None):
        return None  # it ends here

    def build(self, input_shape: dict):
        self.widths = {name: input_shape[name][-1] for name in sorted(input_shape)}
        self.make_weights(self.widths)

    def make_weights(self, widths: dict[str, int]) -> None:
        """By default, there are none."""

    def known_vectors(self, inputs: dict, mask: dict | None) -> dict:
        """Inputs in the order of `widths`, with zeros for what is masked or left out.

        Args:
            inputs: `{name: [batch, width] or [batch, length, width]}`.
            mask: `{name: [batch] or [batch, length]}`, False for what is hidden.

        Returns:
            A dict of the same shapes, of the layer's compute type; `[batch, width]` for a modality
            that is left out.

        Raises:
            ValueError: A modality is not in `widths`.
        """
        if unknown := set(inputs) - set(self.widths):
            raise ValueError(
                f"this layer was built for {', '.join(self.widths)}; got "
                f"{', '.join(sorted(unknown))} as well: make a new layer for other modalities"
            )
        batch = ops.shape(next(iter(inputs.values())))[0]
        known = {}
        for name, width in self.widths.items():
            vectors = inputs.get(name, ops.zeros((batch, width)))
            vectors = ops.cast(vectors, self.compute_dtype)
            if (seen := (mask or {}).get(name)) is not None:
                axes = tuple(range(len(seen.shape), len(vectors.shape)))
                # Selected, not multiplied: a hidden vector may hold anything, NaN included.
                vectors = ops.where(ops.expand_dims(ops.cast(seen, "bool"), axes), vectors, 0.0)
            known[name] = vectors
        return known


class Fusion(ModalityLayer):
    """The base class of fusions: checks, absent modalities, and results of unit length.

    A subclass returns `[batch, dim]` from `fuse(inputs)`, where absent vectors are zeros. Its inner
    layers have its own precision, `dtype=self.dtype_policy`; the result is float32.

    Args:
        dim: Width of the result; `None` if `make_weights` sets it.
        kwargs: As of `keras.layers.Layer`.

    Attributes:
        takes_sequences: Whether inputs may be sequences; a vector is a sequence of one.
    """

    takes_sequences = False

    def __init__(self, dim: int | None, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim

    def build(self, input_shape: dict):
        super().build(input_shape)
        # Keras builds the inner layers when it first calls them.
        super().compute_output_spec(
            {name: keras.KerasTensor(shape) for name, shape in input_shape.items()}
        )

    def call(self, inputs, mask=None):
        for name, vectors in inputs.items():
            if len(vectors.shape) != 2 and not (self.takes_sequences and len(vectors.shape) == 3):
                sequences = " or [batch, length, width]" if self.takes_sequences else ""
                raise ValueError(
                    f"{type(self).__name__} takes [batch, width]{sequences}; got {name} of shape "
                    f"{tuple(vectors.shape)}"
                )
        inputs = self.known_vectors(inputs, mask)
        if self.takes_sequences:
            inputs = {
                name: vectors[:, None] if len(vectors.shape) == 2 else vectors
                for name, vectors in inputs.items()
            }
        has_any = ops.any(ops.stack([present_rows(each) for each in inputs.values()]), axis=0)
        return ops.where(has_any[:, None], unit_length(self.fuse(inputs)), 0.0)

    def compute_output_spec(self, inputs, mask=None) -> keras.KerasTensor:
        batch, *_, width = next(iter(inputs.values())).shape
        return keras.KerasTensor((batch, self.dim or width), "float32")

    def _positions(self, vectors, units: int):
        """Positions of a sequence, `[length, units]`, in the layer's compute type."""
        positions = sinusoidal_positions(ops.shape(vectors)[1], units)
        return ops.cast(positions, self.compute_dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "dim": self.dim}


def identity_if_square(shape, dtype=None):
    """Initializer: a projection within one space starts as the identity."""
    if shape[0] == shape[1]:
        return ops.eye(shape[0], dtype=dtype)
    return keras.initializers.GlorotUniform()(shape, dtype)


def ordered_weights(weights: dict[str, float] | None, names: dict) -> list[float]:
    """The weights in the order of the names; ones by default."""
    if weights is None:
        return [1.0] * len(names)
    if set(weights) != set(names) or not min(weights.values()) > 0:
        raise ValueError(f"weights must be above 0, one for {', '.join(names)}; got {weights}")
    return [float(weights[name]) for name in names]
