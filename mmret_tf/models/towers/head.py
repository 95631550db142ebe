"""The head of a tower (投影头): from a backbone's features to a unit vector in the shared space."""

import keras
from keras import layers, ops

from mmret_tf.models.layers import track
from mmret_tf.similarity.vectors import unit_length


@keras.saving.register_keras_serializable("mmret_tf")
class Head(layers.Layer):
    """Normalization, dropout, projection and unit length. Section 2.2.

    Call: features `[batch, width]` -> float32 `[batch, embedding_dim]`, unit rows.

    Args:
        width: Width of the features.
        embedding_dim: Width of the embedding.
        dropout: Fraction of the features that is dropped in training.
        normalize: Whether to start with batch normalization. It brings the features of a frozen
            backbone, which cannot adapt, to one scale.
        members: Number of members of an ensemble (集成), see `MultiEncoder`. They divide
            `embedding_dim` among them. Each part has its own normalization, dropout, projection and
            unit length: members that share less differ more, and are worth more together.
        is_split: Whether each member projects its own part of the features instead of all of them.

    Raises:
        ValueError: A number is below 1, or `embedding_dim` is not a multiple of `members`.

    >>> head = Head(width=6, embedding_dim=4)
    >>> ops.norm(head(ops.ones((2, 6))), axis=1).numpy().round(3).tolist()
    [1.0, 1.0]
    """

    def __init__(
        self,
        width: int,
        embedding_dim: int,
        dropout: float = 0.0,
        normalize: bool = False,
        members: int = 1,
        is_split: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1; got {embedding_dim}")
        if members < 1 or embedding_dim % members:
            raise ValueError(
                "embedding_dim must be a multiple of members, and members at least 1; got "
                f"{embedding_dim} and {members}"
            )
        self.width = width
        self.embedding_dim = embedding_dim
        self.normalize = normalize
        self.members = members
        self.is_split = is_split
        if normalize:
            # With Keras' default of 0.99 the statistics lag behind in a short run.
            self.normalization = layers.BatchNormalization(
                momentum=0.9, dtype=self.dtype_policy, name="normalization"
            )
            self.normalization.build((None, width if is_split else width * members))
        self.dropout = layers.Dropout(dropout, dtype=self.dtype_policy)
        self.projections = [
            layers.Dense(embedding_dim // members, dtype=self.dtype_policy, name=f"projection_{n}")
            for n in range(members)
        ]
        for projection in self.projections:
            projection.build((None, width // members if is_split else width))
        track(self, "member", self.projections)
        self.built = True

    def call(self, features, training=False):
        return unit_length(self.project(features, training), self.members)

    def project(self, features, training: bool = False):
        """The result of `call` before it is scaled to unit length, `[batch, embedding_dim]`."""
        if not self.is_split and self.members > 1:
            features = ops.tile(features, (1, self.members))
        if self.normalize:
            features = self.normalization(features, training=training)
        features = self.dropout(features, training=training)
        parts = ops.split(features, self.members, axis=1)
        projected = [project(part) for project, part in zip(self.projections, parts, strict=True)]
        return ops.concatenate(projected, axis=1) if self.members > 1 else projected[0]

    def compute_output_spec(self, features, training=False) -> keras.KerasTensor:
        return keras.KerasTensor((features.shape[0], self.embedding_dim), "float32")

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "width": self.width,
            "embedding_dim": self.embedding_dim,
            "dropout": self.dropout.rate,
            "normalize": self.normalize,
            "members": self.members,
            "is_split": self.is_split,
        }
