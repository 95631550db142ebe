"""What all fusions share (模态融合): the interface, missing vectors, unit length. Section 2.3.

Late fusion (晚期融合, in `late`) joins one finished vector per modality. Early fusion (早期融合)
joins regions and words before one encoder reads them, and hybrid fusion (混合融合) lets regions and
words attend to each other before it joins the results late; both are in `sequences`.

All are Keras layers with one interface. Inputs are a dict, `{"image": ..., "text": ...}` or any
other names, of vectors `[batch, width]` or sequences of vectors `[batch, length, width]`. Any of
them may be absent: a vector of zeros is absent, as in `keras.layers.Masking`; a modality that is
not in the dict is absent in all rows; and a `mask` of booleans under the same names, `[batch]` or
`[batch, length]`, overrules both. Absent vectors never change a result, and a row where everything
is absent becomes zeros.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras
from keras import layers, ops

from mmret_tf.similarity.vectors import unit_length


def presence(inputs: dict, mask: dict | None = None) -> dict:
    """Which vectors are present: booleans `[batch]`, or `[batch, length]` for sequences.

    Args:
        inputs: `{name: [batch, width] or [batch, length, width]}`.
        mask: `{name: [batch] or [batch, length]}`. For the names that it has, it overrules the
            vectors. `[batch]` masks whole sequences; vectors of zeros in them stay absent.

    >>> presence({"image": ops.array([[0.0, 0.0], [0.6, 0.8]])})["image"].numpy().tolist()
    [False, True]
    """
    present = {}
    for name, vectors in inputs.items():
        given = (mask or {}).get(name)
        seen = ops.any(ops.not_equal(vectors, 0), axis=-1)
        if given is None:
            present[name] = seen
        else:
            given = ops.cast(given, "bool")
            whole_sequence = len(seen.shape) == 2 and len(given.shape) == 1
            present[name] = given[:, None] & seen if whole_sequence else given
    return present


def any_of(present):
    """Whether a row has the modality at all: `[batch]` from `[batch]` or `[batch, length]`."""
    return present if len(present.shape) == 1 else ops.any(present, axis=-1)


def known_vectors(inputs: dict, mask: dict | None, widths: dict[str, int]) -> tuple[dict, dict]:
    """Inputs with zeros for absent vectors, and their presence, in the order of `widths`.

    Args:
        inputs: As for `presence`; a modality that is left out is absent in all rows.
        mask: As for `presence`.
        widths: Width of each modality.

    Raises:
        ValueError: A modality is not in `widths`.
    """
    if unknown := set(inputs) - set(widths):
        raise ValueError(
            f"this layer was built for {', '.join(widths)}; got {', '.join(sorted(unknown))} as "
            "well: make a new layer for other modalities"
        )
    batch = ops.shape(next(iter(inputs.values())))[0]
    known, present = {}, presence(inputs, mask)
    for name, width in widths.items():
        if name in inputs:
            # Selected, not multiplied: an absent vector may hold anything, NaN included.
            vectors = ops.cast(inputs[name], "float32")
            known[name] = ops.where(present[name][..., None], vectors, 0.0)
        else:
            known[name] = ops.zeros((batch, width))
            present[name] = ops.zeros((batch,), "bool")
    return known, {name: present[name] for name in widths}


class MaskedLayer(layers.Layer):
    """A layer that takes Keras' masks of its inputs as `mask` and passes none on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs, mask=None):
        return None


class Fusion(MaskedLayer):
    """The base class of fusions: checks, masks, and results of unit length.

    A subclass creates its weights in `make_weights(widths)`. Its `fuse(inputs, present, training)`
    returns `[batch, dim]`; the absent vectors of its inputs are zeros.

    Args:
        dim: Width of the result; `None` if `make_weights` sets it.
        kwargs: As of `keras.layers.Layer`.

    Attributes:
        takes_sequences: Whether inputs may be sequences.
        widths: Width of each modality, in alphabetical order, once the layer is built.
    """

    takes_sequences = False

    def __init__(self, dim: int | None, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim

    def build(self, input_shape: dict):
        self.widths = {name: input_shape[name][-1] for name in sorted(input_shape)}
        self.make_weights(self.widths)

    def call(self, inputs, mask=None, training=False):
        for name, vectors in inputs.items():
            if len(vectors.shape) != 2 and not (self.takes_sequences and len(vectors.shape) == 3):
                sequences = " or [batch, length, width]" if self.takes_sequences else ""
                raise ValueError(
                    f"{type(self).__name__} takes [batch, width]{sequences}; got {name} of shape "
                    f"{tuple(vectors.shape)}"
                )
        inputs, present = known_vectors(inputs, mask, self.widths)
        has_any = ops.any(ops.stack([any_of(each) for each in present.values()]), axis=0)
        return ops.where(has_any[:, None], unit_length(self.fuse(inputs, present, training)), 0.0)

    def compute_output_shape(self, input_shape, **kwargs):
        batch, *_, width = next(iter(input_shape.values()))
        return (batch, self.dim or width)

    def get_config(self) -> dict:
        return {**super().get_config(), "dim": self.dim}


def identity_if_square(shape, dtype=None):
    """Initializer: a projection within one space starts as the identity."""
    if shape[0] == shape[1]:
        return ops.eye(shape[0], dtype=dtype)
    return keras.initializers.GlorotUniform()(shape, dtype)


def check_weights(weights: dict[str, float] | None) -> None:
    """Refuse weights that are not above 0."""
    if weights is not None and not all(weight > 0 for weight in weights.values()):
        raise ValueError(f"weights must be above 0; got {weights}")


def ordered_weights(weights: dict[str, float] | None, names: Iterable[str]) -> list[float]:
    """The weights in the order of the names; ones by default."""
    if weights is None:
        return [1.0 for _ in names]
    if set(weights) != set(names):
        raise ValueError(f"weights must name {', '.join(names)}; got {', '.join(weights)}")
    return [float(weights[name]) for name in names]
