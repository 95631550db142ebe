"""Fusion (模态融合): the modalities of an item or a query become one vector; any may be absent.

Section 2.3 and 3.2(3) of the document. Early fusion (早期融合) joins regions and words before one
encoder reads them; late fusion (晚期融合) joins one finished vector a modality; hybrid fusion
(混合融合) lets regions and words look at each other first, and joins what comes of it late. Fusion
of the scores is in `score_fusion`.

All are Keras layers with one interface. Inputs are a dict, `{"image": ..., "text": ...}` or any
other names, of vectors `[batch, width]` or sequences of them `[batch, length, width]`. A vector of
zeros is not there, as in `keras.layers.Masking`; a modality that is left out of the dict is absent
in all rows; and an explicit `mask`, booleans `[batch]` or `[batch, length]` under the same names,
overrules both. What is absent never changes a result, and a row with nothing at all gives zeros.
"""

from __future__ import annotations

import keras
from keras import layers, ops

from mmret_tf.towers import unit_length
from mmret_tf.transformer import TransformerEncoder, sinusoidal_positions


def presence(inputs: dict, mask: dict | None = None) -> dict:
    """Which vectors are there: booleans `[batch]`, or `[batch, length]` for sequences.

    Args:
        inputs: `{name: [batch, width] or [batch, length, width]}`.
        mask: `{name: [batch] or [batch, length]}` overrules what the vectors say, for the names
            that it has; `[batch]` speaks of a whole sequence, whose zeros stay absent.

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
    """Inputs with zeros for all that is absent, and their presence, in the order of `widths`.

    A modality that was left out is absent in all rows; ValueError for one that nobody knows.
    """
    if unknown := set(inputs) - set(widths):
        raise ValueError(
            f"this layer was made for {', '.join(widths)}; got {', '.join(sorted(unknown))} too"
        )
    present = presence(inputs, mask)
    batch = ops.shape(next(iter(inputs.values())))[0]
    for name in set(widths) - set(inputs):
        inputs = {**inputs, name: ops.zeros((batch, widths[name]))}
        present[name] = ops.zeros((batch,), "bool")
    # Chosen, not multiplied: an absent vector may hold anything, NaN too.
    known = {
        name: ops.where(present[name][..., None], ops.cast(inputs[name], "float32"), 0.0)
        for name in widths
    }
    return known, {name: present[name] for name in widths}


def _identity_if_square(shape, dtype=None):
    """A projection within one space starts as no projection at all."""
    if shape[0] == shape[1]:
        return ops.eye(shape[0], dtype=dtype)
    return keras.initializers.GlorotUniform()(shape, dtype)


class Fusion(layers.Layer):
    """What the fusions of vectors share: names, masks, and results of unit length.

    A subclass makes its weights in `make_weights(widths)`, and in `fuse(inputs, present, training)`
    it makes `[batch, dim]` of inputs of which what is absent has become zeros.
    """

    takes_sequences = False

    def __init__(self, dim: int | None, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim  # None until `make_weights`, where the inputs decide
        self.supports_masking = True  # Keras' masks of the inputs come as `mask`; here they end

    def build(self, input_shape: dict):
        self.widths = {name: input_shape[name][-1] for name in sorted(input_shape)}
        self.make_weights(self.widths)

    def call(self, inputs, mask=None, training=False):
        for name, vectors in inputs.items():
            if len(vectors.shape) != 2 and not (self.takes_sequences and len(vectors.shape) == 3):
                kinds = "[batch, width] or [batch, length, width]"
                raise ValueError(
                    f"{type(self).__name__} takes {kinds if self.takes_sequences else kinds[:14]}; "
                    f"got {name} of shape {tuple(vectors.shape)}"
                )
        inputs, present = known_vectors(inputs, mask, self.widths)
        something = ops.any(ops.stack([any_of(each) for each in present.values()]), axis=0)
        return ops.where(something[:, None], unit_length(self.fuse(inputs, present, training)), 0.0)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape, **kwargs):
        return (next(iter(input_shape.values()))[0], self.dim)

    def get_config(self) -> dict:
        return {**super().get_config(), "dim": self.dim}


@keras.saving.register_keras_serializable("mmret_tf")
class Concatenate(Fusion):
    """Late fusion by concatenation (拼接): `W [x_1; x_2; ...] + b`. Section 3.2(3).

    Where modalities already are `dim` wide, W starts as a row of identities, so that the result
    starts as their sum.

    Call: `{name: [batch, width]}` -> float32 `[batch, dim]`, unit rows. Any row of a modality may
    be absent (zeros), see `mmret_tf.fusion`.

    Args:
        dim: width of the result.

    Raises:
        ValueError: in a call, inputs of another shape, or a modality that the first call had not.

    >>> layer = Concatenate(2)
    >>> image, text = ops.array([[1.0, 0.0]]), ops.array([[0.0, 1.0]])
    >>> layer({"image": image, "text": text}).numpy().round(3)
    array([[0.707, 0.707]], dtype=float32)
    >>> layer({"image": image}).numpy()  # the text is missing
    array([[1., 0.]], dtype=float32)
    """

    def make_weights(self, widths):
        def blocks(shape, dtype=None):
            parts = [_identity_if_square((width, self.dim), dtype) for width in widths.values()]
            return ops.concatenate(parts)

        self.kernel = self.add_weight((sum(widths.values()), self.dim), blocks, name="kernel")
        self.bias = self.add_weight((self.dim,), "zeros", name="bias")

    def fuse(self, inputs, present, training):
        joined = ops.concatenate([inputs[name] for name in self.widths], axis=-1)
        return ops.matmul(joined, self.kernel) + self.bias


@keras.saving.register_keras_serializable("mmret_tf")
class WeightedSum(Fusion):
    """Late fusion by weighted sum (加权求和), over the modalities that are there. Section 3.2(3).

    Call: `{name: [batch, dim]}`, all of one width -> float32 `[batch, dim]`, unit rows.

    Args:
        weights: `{name: share}`, a share of each modality, above 0; equal ones by default.
        learned: whether training changes them.

    Raises:
        ValueError: a weight is not above 0; in a call, as `Concatenate`, the widths differ, or the
            weights name other modalities.

    >>> layer = WeightedSum({"image": 3.0, "text": 4.0})
    >>> image, text = ops.array([[1.0, 0.0]] * 2), ops.array([[0.0, 1.0], [0.0, 0.0]])
    >>> layer({"image": image, "text": text}).numpy().round(3)
    array([[0.6, 0.8],
           [1. , 0. ]], dtype=float32)
    """

    def __init__(self, weights: dict[str, float] | None = None, learned: bool = False, **kwargs):
        super().__init__(dim=None, **kwargs)
        check_weights(weights)
        self.weights_given = weights
        self.learned = learned

    def make_weights(self, widths):
        if len(set(widths.values())) != 1:
            raise ValueError(f"a sum needs modalities of one width; got {widths}")
        self.dim = next(iter(widths.values()))
        self.log_weights = self.add_weight(
            (len(widths),),
            lambda shape, dtype=None: ops.log(ordered_weights(self.weights_given, widths)),
            trainable=self.learned,
            name="log_weights",
        )

    def fuse(self, inputs, present, training):
        there = ops.stack([present[name] for name in self.widths], axis=1)
        shares = ops.exp(self.log_weights) * ops.cast(there, "float32")
        vectors = ops.stack([inputs[name] for name in self.widths], axis=1)
        return ops.sum(vectors * shares[:, :, None], axis=1)

    def compute_output_shape(self, input_shape, **kwargs):
        return next(iter(input_shape.values()))

    def get_config(self) -> dict:
        config = {"weights": self.weights_given, "learned": self.learned}
        return {**layers.Layer.get_config(self), **config}


@keras.saving.register_keras_serializable("mmret_tf")
class GatedFusion(Fusion):
    """Late fusion by gates (门控融合): the content decides how much each modality counts, number by
    number of the result (gated multimodal unit, arXiv 1702.01992, for any number of modalities).

    `sum_m gate_m * (W_m x_m + b_m)`, where the gates are a softmax over the modalities that are
    there, of a linear map of all of them. It starts as their mean. Section 3.2(3).

    Call, and errors: as `Concatenate`.

    Args:
        dim: width of the result.

    >>> layer = GatedFusion(2)
    >>> image, text = ops.array([[0.8, 0.6]] * 2), ops.array([[0.6, 0.8], [0.0, 0.0]])
    >>> layer({"image": image, "text": text}).numpy().round(3)  # no text in the second row
    array([[0.707, 0.707],
           [0.8  , 0.6  ]], dtype=float32)
    """

    def make_weights(self, widths):
        self.values = {
            name: layers.Dense(self.dim, kernel_initializer=_identity_if_square) for name in widths
        }
        self.gates = layers.Dense(len(widths) * self.dim, kernel_initializer="zeros")
        for name, width in widths.items():
            self.values[name].build((None, width))
        self.gates.build((None, sum(widths.values())))

    def fuse(self, inputs, present, training):
        values = ops.stack([self.values[name](inputs[name]) for name in self.widths], axis=1)
        gates = self.gates(ops.concatenate([inputs[name] for name in self.widths], axis=-1))
        gates = ops.reshape(gates, (-1, len(self.widths), self.dim))
        there = ops.stack([present[name] for name in self.widths], axis=1)
        shares = ops.softmax(ops.where(there[:, :, None], gates, -1e9), axis=1)
        return ops.sum(shares * values, axis=1)


@keras.saving.register_keras_serializable("mmret_tf")
class EarlyFusion(Fusion):
    """Early fusion (早期融合): the regions and words of all modalities, in one sequence, are read
    by one Transformer. Section 2.3; like the single-stream encoders, arXiv 1909.11740.

    Call: `{name: [batch, length, width] or [batch, width]}` -> float32 `[batch, dim]`, unit rows.
    A modality that comes as one vector counts as a sequence of one.

    Args:
        dim: width of the result.
        units: width of the Transformer, a multiple of 4; see `transformer.TransformerEncoder`.

    Raises:
        ValueError: other `units`; in a call, as `Concatenate`.

    >>> layer = EarlyFusion(dim=3, units=8)
    >>> regions, words = ops.ones((2, 4, 5)), ops.ones((2, 6, 7))  # 4 regions, 6 words
    >>> layer({"image": regions, "text": words}).shape
    TensorShape([2, 3])
    """

    takes_sequences = True

    def __init__(self, dim: int, units: int = 256, **kwargs):
        super().__init__(dim, **kwargs)
        self.units = units
        self.encoder = TransformerEncoder(units, positions=False)
        self.projection = layers.Dense(dim)

    def make_weights(self, widths):
        # A bias tells the encoder from which modality a token comes.
        bias = keras.initializers.RandomNormal(stddev=0.1)
        self.entries = {
            name: layers.Dense(self.units, bias_initializer=bias.clone()) for name in widths
        }
        for name, width in widths.items():
            self.entries[name].build((None, width))
        self.encoder.build((None, None, self.units))
        self.projection.build((None, self.units))

    def fuse(self, inputs, present, training):
        sequences, there = _as_sequences(inputs, present)
        tokens = []
        for name in self.widths:
            # Counted in each modality anew: what one has never moves the words of another.
            positions = sinusoidal_positions(ops.shape(sequences[name])[1], self.units)
            tokens.append(self.entries[name](sequences[name]) + positions)
        joined = ops.concatenate(tokens, axis=1)
        mask = ops.concatenate([there[name] for name in self.widths], axis=1)
        return self.projection(self.encoder(joined, mask=mask))

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("mmret_tf")
class HybridFusion(Fusion):
    """Hybrid fusion (混合融合): each modality's tokens attend to those of all others, regions to
    words and words to regions; their means are then fused late, by gates. Section 2.3; like the
    co-attention of arXiv 1908.02265.

    Call: as `EarlyFusion`.

    Args:
        dim: width of the result and of the attention; a multiple of `heads`.
        heads: of the attention.

    Raises:
        ValueError: `dim` is no multiple of `heads`; in a call, as `Concatenate`.

    >>> layer = HybridFusion(dim=8)
    >>> regions, words = ops.ones((2, 4, 5)), ops.ones((2, 6, 7))  # 4 regions, 6 words
    >>> layer({"image": regions, "text": words}).shape
    TensorShape([2, 8])
    """

    takes_sequences = True

    def __init__(self, dim: int, heads: int = 4, **kwargs):
        super().__init__(dim, **kwargs)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads; got {dim} and {heads}")
        self.heads = heads
        self.late = GatedFusion(dim)

    def make_weights(self, widths):
        self.streams = {
            name: (
                layers.Dense(self.dim, kernel_initializer=_identity_if_square),
                layers.LayerNormalization(),
                layers.MultiHeadAttention(self.heads, self.dim // self.heads),
                layers.LayerNormalization(),
                layers.Dense(2 * self.dim, activation="gelu"),
                layers.Dense(self.dim),
            )
            for name in widths
        }
        tokens = (None, None, self.dim)
        for name, (entry, norm, attention, last_norm, widen, narrow) in self.streams.items():
            entry.build((None, None, widths[name]))
            norm.build(tokens)
            attention.build(tokens, tokens)
            last_norm.build(tokens)
            widen.build(tokens)
            narrow.build((None, None, 2 * self.dim))
        self.late.build({name: (None, self.dim) for name in widths})

    def fuse(self, inputs, present, training):
        sequences, there = _as_sequences(inputs, present)
        tokens, normed = {}, {}
        for name, (entry, norm, *_) in self.streams.items():
            tokens[name] = entry(sequences[name])
            positions = sinusoidal_positions(ops.shape(tokens[name])[1], self.dim)
            normed[name] = norm(tokens[name]) + positions
        pooled = {}
        for name, (_, _, attention, last_norm, widen, narrow) in self.streams.items():
            others = [other for other in self.widths if other != name]
            hidden = tokens[name]
            if others:
                mask = ops.concatenate([there[other] for other in others], axis=1)
                context = ops.concatenate([normed[other] for other in others], axis=1)
                attended = attention(normed[name], context, attention_mask=mask[:, None, :])
                # With nothing to look at, a softmax over nothing would still be an average.
                hidden = hidden + ops.where(ops.any(mask, axis=1)[:, None, None], attended, 0.0)
            hidden = hidden + narrow(widen(last_norm(hidden)))
            real = ops.cast(there[name], "float32")[:, :, None]
            pooled[name] = ops.sum(hidden * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1)
        mask = {name: any_of(present[name]) for name in self.widths}
        return self.late(pooled, mask=mask, training=training)

    def get_config(self) -> dict:
        return {**super().get_config(), "heads": self.heads}


def _as_sequences(inputs: dict, present: dict) -> tuple[dict, dict]:
    """Vectors `[batch, width]` as sequences of one, and their presence likewise."""
    is_vector = {name: len(vectors.shape) == 2 for name, vectors in inputs.items()}
    return (
        {name: each[:, None] if is_vector[name] else each for name, each in inputs.items()},
        {name: each[:, None] if is_vector[name] else each for name, each in present.items()},
    )


def check_weights(weights: dict[str, float] | None) -> None:
    if weights is not None and not all(weight > 0 for weight in weights.values()):
        raise ValueError(f"weights must be above 0; got {weights}")


def ordered_weights(weights: dict[str, float] | None, names) -> list[float]:
    """The weights in the order of the names; ones by default."""
    if weights is None:
        return [1.0 for _ in names]
    if set(weights) != set(names):
        raise ValueError(f"weights must name {', '.join(names)}; got {', '.join(weights)}")
    return [float(weights[name]) for name in names]
