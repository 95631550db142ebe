"""The fused encoder (融合编码器): one embedding for an item or query with several modalities.

It stands on an encoder with trained towers. The embeddings, regions and words of all modalities are
fused to one vector in the encoder's own space, so indexes, queries and scores stay comparable.
Sections 2.3 and 3.2(3).
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mmret_tf._checks import check_items
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.pairs import Pairs
from mmret_tf.fusion.fusion import Fusion
from mmret_tf.fusion.imputers import Imputer
from mmret_tf.fusion.missing import ModalityDropout
from mmret_tf.models.dual_encoder import load_as
from mmret_tf.models.encoder import Encoder, MultiEncoder
from mmret_tf.models.fingerprint import weights_digest
from mmret_tf.models.towers.tower import Tower, input_batches
from mmret_tf.models.whole_model import WholeModel

# Items that are fused at once.
BATCH = 256


@keras.saving.register_keras_serializable("mmret_tf")
class FusedEncoder(WholeModel, Encoder):
    """An encoder and a fusion: all modalities of an item, or some of them, -> one embedding.
    Section 2.3.

    Call: `{modality: ...}` as `features` returns it, with zeros for absent modalities -> float32
    `[batch, dim]`, unit rows; zeros for a row where all are absent.

    `compile`, `fit`, `predict` and `save` are Keras' own. Targets are embeddings `[batch, dim]` in
    the encoder's space, such as those of the items to be found. `losses.ContrastiveTargets` is a
    loss for them; the document's `keras.losses.CosineSimilarity` works as well.

    Sources of a single modality are embedded by the encoder alone, and the embeddings lie in its
    space: `towers`, `encode` and `fingerprint` are those of the encoder.

    Args:
        encoder: Trained encoder. From here on it is frozen: not trainable and not compiled.
        fusion: Layer of `mmret_tf.fusion` that returns the encoder's width. Late fusions get
            embeddings; early and hybrid ones get regions and words.
        imputer: Layer that fills in absent modalities before a late fusion.
        modality_dropout: Probability of hiding a modality in training, see `ModalityDropout`.

    Raises:
        ValueError: The fusion has another width, an imputer is given to a fusion of regions and
            words, or a tower has no regions or words.

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8))  # or `load_model`
    >>> fused = FusedEncoder(model, mm.fusion.GatedFusion(dim=8))
    >>> fused.compile("adam", mm.losses.ContrastiveTargets())
    >>> history = fused.fit(*item_examples(fused, pairs), verbose=0)
    >>> image = pairs.image_paths[0]
    >>> items = {"image": [[image], [image], []], "text": [["a red circle"], [], ["红色的圆"]]}
    >>> fused.encode_items(items).shape
    (3, 8)
    """

    def __init__(
        self,
        encoder: MultiEncoder,
        fusion: Fusion,
        imputer: Imputer | None = None,
        modality_dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if imputer is not None and fusion.takes_sequences:
            raise ValueError(f"give imputers to late fusions only; got {type(fusion).__name__}")
        encoder.trainable = False
        # Its optimizer would be saved with it, at twice the size of the weights.
        encoder.compiled, encoder.optimizer = False, None
        self.encoder = encoder
        self.embedding_dim = encoder.embedding_dim
        self.fusion = fusion
        self.imputer = imputer
        self.dropout = ModalityDropout(modality_dropout)
        for layer in (imputer, fusion):
            if layer is not None and not layer.built:
                layer.build(self._feature_shapes())
        if fusion.dim != encoder.embedding_dim:
            raise ValueError(
                f"the fusion must return the encoder's width, {encoder.embedding_dim}; it returns "
                f"{fusion.dim}"
            )
        self.built = True
        self._compiled = tf.function(self._features_of, reduce_retracing=True)

    def input_specs(self) -> dict:
        return {name: tf.TensorSpec(shape) for name, shape in self._feature_shapes().items()}

    @property
    def towers(self) -> dict[str, Tower]:
        """The encoder's towers, by modality."""
        return self.encoder.towers

    @property
    def fingerprint(self) -> str:
        """That of the encoder: the embeddings lie in its space."""
        return self.encoder.fingerprint

    @property
    def recipe(self) -> str:
        """SHA-256 of the fusion and the imputer, which names the chunks of an embedding store."""
        layers = [layer for layer in (self.fusion, self.imputer) if layer is not None]
        # Keras renumbers unnamed layers in each process.
        configs = [{**each.get_config(), "name": type(each).__name__} for each in layers]
        return weights_digest(configs, [weight for each in layers for weight in each.weights])

    def call(self, inputs, training=False):
        inputs = self.dropout(inputs, training=training)
        return self.fusion(inputs if self.imputer is None else self.imputer(inputs))

    def fuse_inputs(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Embed rows in TensorFlow ops, from the inputs of the towers: for an exported graph.

        Args:
            inputs: For each modality what its tower's `preprocess` returns, one source a row; a
                modality that is left out is absent in all rows.

        Returns:
            float32 `[batch, dim]`, unit rows.
        """
        return self({name: self._features_of(name, each) for name, each in inputs.items()})

    def features(self, sources: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, np.ndarray]:
        """The inputs of `call` and `fit`. The towers are frozen, so compute them once.

        Args:
            sources: For each modality a list of sources an item; empty lists where it lacks one.

        Returns:
            A dict by modality, with zeros where an item lacks it. For late fusions, float32 `[n,
            dim]`: the mean of an item's embeddings at unit length. For others, float32 `[n, length,
            width]`: the regions or words of all its sources, one source after another.

        Raises:
            ValueError: The lists differ in length, an item has no source, or a source cannot be
                used (the message names it).
        """
        n = check_items(sources)
        known = {name: sources.get(name, [()] * n) for name in self.modalities}
        check_items(known)
        make = self._sequences if self.fusion.takes_sequences else self.encoder.mean_embeddings
        return {name: make(name, each) for name, each in known.items()}

    def encode_items(self, sources: Mapping[str, Sequence[Sequence[Any]]]) -> np.ndarray:
        """Embed items or queries that have any number of sources of any modalities.

        Args:
            sources: As for `features`.

        Returns:
            float32 `[n, dim]`, unit rows.

        Raises:
            ValueError: As for `features`.
        """
        features = self.features(sources)
        n = len(next(iter(features.values())))
        blocks = [
            self.predict_on_batch({name: rows[i : i + BATCH] for name, rows in features.items()})
            for i in range(0, n, BATCH)
        ]
        return np.concatenate([np.zeros((0, self.embedding_dim), np.float32), *blocks])

    def _features_of(self, modality: str, inputs: tf.Tensor) -> tf.Tensor:
        """What the fusion takes: embeddings, or vectors with zeros where masked."""
        tower = self.towers[modality]
        if not self.fusion.takes_sequences:
            return tower(inputs, training=False)
        return tower.padded_sequence(inputs)

    def _sequences(self, modality: str, sources: Sequence[Sequence[Any]]) -> np.ndarray:
        """The vectors of each item's sources, one by one, then zeros: `[n, length, width]`."""
        width = self.fusion.widths[modality]
        flat = get_modality(modality).sources([*itertools.chain.from_iterable(sources)])
        if not flat:
            return np.zeros((len(sources), 1, width), np.float32)
        batches = input_batches(self.towers[modality], flat)
        # Without its padding, so that a sequence does not depend on the others of its batch.
        vectors = (
            row[: 1 + max(np.flatnonzero(row.any(axis=1)), default=0)]
            for batch in batches
            for row in self._compiled(modality, batch).numpy()
        )
        nothing = np.zeros((0, width), np.float32)
        items = [
            np.concatenate([nothing, *itertools.islice(vectors, len(each))]) for each in sources
        ]
        return keras.utils.pad_sequences(items, dtype="float32", padding="post")

    def _feature_shapes(self) -> dict[str, tuple]:
        """Shapes of `features`, for the layers that are built from them."""
        if not self.fusion.takes_sequences:
            return {name: (None, self.embedding_dim) for name in self.modalities}
        widths = {name: tower.sequence_shape()[1] for name, tower in self.towers.items()}
        return {name: (None, None, width) for name, width in widths.items()}

    def get_config(self) -> dict:
        parts = {"encoder": self.encoder, "fusion": self.fusion, "imputer": self.imputer}
        return {
            "name": self.name,
            "modality_dropout": self.dropout.rate,
            **keras.saving.serialize_keras_object(parts),
        }

    @classmethod
    def from_config(cls, config: dict) -> "FusedEncoder":
        return cls(**keras.saving.deserialize_keras_object(config))


def item_examples(fused: FusedEncoder, pairs: Pairs) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs and targets that teach a late fusion to embed items, from complete pairs. Section 2.3.

    Each caption of an image is in turn the item's text, and the image's next caption is the query
    that should find the item. For pairs of other modalities, read the first one for the image and
    the second one for the captions.

    Args:
        fused: Embeds the sources.
        pairs: Images with captions; those with one caption only are left out.

    Returns:
        `({"image": [n, dim], "text": [n, dim]}, [n, dim])`, float32, for `FusedEncoder.fit`; n is
        the number of captions.

    Raises:
        ValueError: No image has two captions, or the fusion takes regions and words.

    >>> from types import SimpleNamespace
    >>> from mmret_tf.fusion import WeightedSum
    >>> encode = lambda modality, sources: np.eye(3)[: len(sources)]
    >>> fused = SimpleNamespace(encode=encode, fusion=WeightedSum())  # or a `FusedEncoder`
    >>> pairs = Pairs(["a"], {"image": [["a.png"]], "text": [["red", "红", "a red one"]]})
    >>> inputs, targets = item_examples(fused, pairs)
    >>> inputs["image"].shape, inputs["text"].argmax(axis=1), targets.argmax(axis=1)
    ((3, 3), array([0, 1, 2]), array([1, 2, 0]))
    """
    if fused.fusion.takes_sequences:
        raise ValueError("item_examples makes embeddings: give an encoder with a late fusion")
    first, second = pairs.modalities
    rows = [row for row, each in enumerate(pairs.sources[second]) if len(each) > 1]
    if not rows:
        raise ValueError(f"no {first} has two sources of {second}, one for the item's query")
    pairs = pairs.subset(rows)
    owners, embeddings = pairs.caption_to_image(), fused.encode(second, pairs.second_sources)
    of_rows = np.split(embeddings, np.flatnonzero(np.diff(owners)) + 1)
    targets = np.concatenate([np.roll(each, -1, axis=0) for each in of_rows])
    return {first: fused.encode(first, pairs.first_sources)[owners], second: embeddings}, targets


def load_fused_encoder(path: str | os.PathLike) -> FusedEncoder:
    """Load a fused encoder, with its encoder, from its `.keras` file. Section 2.3.

    Args:
        path: What `FusedEncoder.save` wrote, such as a run's `fusion.keras`.

    Returns:
        A `FusedEncoder` that makes the same embeddings.

    Raises:
        ValueError: There is no such file, it is not a `.keras` file, or it holds another model.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> encoder = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> path = f"{tempfile.mkdtemp()}/fusion.keras"
    >>> FusedEncoder(encoder, mm.fusion.WeightedSum({"image": 1.0, "text": 2.0})).save(path)
    >>> load_fused_encoder(path).fusion.weights_given
    {'image': 1.0, 'text': 2.0}
    """
    return load_as(FusedEncoder, path)
