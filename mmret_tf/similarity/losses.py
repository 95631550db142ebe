"""Losses (损失函数) that pull matching embeddings together and push the rest of the batch apart.

All of them take embeddings of unit length and group ids: rows with the same id show the same item,
and are never negatives of each other. The document trains with cosine similarity alone (section 5).
On matching pairs alone, that loss reaches its minimum (-1) when all embeddings are equal. All
losses here have negatives (负样本).

The prediction is a dict of the embeddings of two modalities, as an encoder gives it:
`{"image": [batch, dim], "text": [batch, dim]}`, or any other two names.
"""

import keras
import tensorflow as tf
from keras import ops

LABELS = ("groups", "pairs")
NEGATIVES = ("sum", "hardest")


def _pair(y_pred: dict) -> tuple:
    """The embeddings of the two modalities."""
    rows = [rows for name, rows in y_pred.items() if name != "temperature"]
    if len(rows) != 2:
        raise ValueError(f"a loss takes the embeddings of two modalities; got {list(y_pred)}")
    return tuple(rows)


def _similarities(y_pred: dict):
    """Cosine of every row of one modality with every row of the other, `[batch, batch]`."""
    first, second = _pair(y_pred)
    return ops.matmul(first, ops.transpose(second))


def _same_group(groups):
    """Whether two rows show the same item, booleans `[batch, batch]`."""
    groups = ops.reshape(groups, (-1,))
    return groups[:, None] == groups[None, :]


def _balanced_mean(values, same):
    """Mean over the matching pairs plus mean over the others, as a cost for each row, `[batch]`.

    Both means weigh the same, whatever the number of negatives in the batch.
    """
    same = ops.cast(same, values.dtype)
    other = 1 - same
    batch = ops.cast(ops.shape(values)[0], values.dtype)
    positives = ops.sum(values * same, axis=1) / ops.sum(same)
    negatives = ops.sum(values * other, axis=1) / ops.maximum(ops.sum(other), 1)
    return batch * (positives + negatives)


def numbered_groups(groups):
    """Group ids `[batch]` of any kind as the place of the first row of each group.

    Keras casts targets to the type of the loss, where large integers merge and strings fail.
    """
    groups = tf.reshape(tf.convert_to_tensor(groups), (-1,))
    return tf.argmax(groups[:, None] == groups[None, :], axis=1, output_type=tf.int32)


class GroupLoss(keras.losses.Loss):
    """The base class of losses whose targets are group ids: integers of any size, or strings."""

    def _targets(self, y_true):
        """Targets that Keras can cast to the type of the loss."""
        return numbered_groups(y_true)

    def __call__(self, y_true, y_pred, sample_weight=None):
        return super().__call__(self._targets(y_true), y_pred, sample_weight)


def symmetric_cross_entropy(logits, groups):
    """Each row must pick its own column in the batch, and each column its row (InfoNCE).

    Args:
        logits: Scores of all pairs, `[batch, batch]`; matching pairs are on the diagonal.
        groups: Group ids `[batch]`. Others of the same group are left out of the choice.

    Returns:
        The mean of both costs, `[batch]`.

    >>> print(symmetric_cross_entropy(ops.eye(2), ops.arange(2)).numpy().round(4))
    [0.3133 0.3133]
    """
    itself = ops.eye(ops.shape(logits)[0], dtype="bool")
    logits = ops.where(_same_group(groups) & ~itself, -1e9, logits)
    right = ops.diagonal(logits)
    row_picks = ops.logsumexp(logits, axis=1) - right
    column_picks = ops.logsumexp(logits, axis=0) - right
    return (row_picks + column_picks) / 2


def _check_above_zero(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{name} must be above 0; got {value}")


@keras.saving.register_keras_serializable("mmret_tf")
class CosineSimilarityLoss(GroupLoss):
    """The document's cosine-similarity loss (余弦相似度损失), with negatives. Section 5.

    A matching pair costs `1 - cos`, any other `max(0, cos - margin)`.

    Args:
        margin: Cosine below which a pair that does not match costs nothing, -1 to 1.
        labels: Meaning of `y_true`. "groups": `[batch]` group ids; every image is paired with every
            caption of the batch, and matching and other pairs weigh the same. "pairs": `[batch]`
            labels of the rows, 1 for an image with its own caption, 0 or -1 for any other caption.
        kwargs: `name`, `reduction` and `dtype`, as of any Keras loss.

    Raises:
        ValueError: `labels` is unknown, or the margin is not a cosine.

    `y_pred`: `{"image": [batch, dim], "text": [batch, dim]}`, unit rows.

    >>> loss = CosineSimilarityLoss(margin=0.0, labels="pairs")
    >>> image, text = ops.array([[1.0, 0], [1, 0]]), ops.array([[0.6, 0.8], [0.6, 0.8]])
    >>> print(round(float(loss([1, 0], {"image": image, "text": text})), 6))  # (0.4 + 0.6) / 2
    0.5
    """

    def __init__(self, margin: float = 0.2, labels: str = "groups", **kwargs):
        super().__init__(**kwargs)
        if labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}; got {labels!r}")
        if not -1 <= margin <= 1:
            raise ValueError(f"margin must be a cosine, -1 to 1; got {margin}")
        self.margin = margin
        self.labels = labels

    def _targets(self, y_true):
        return y_true if self.labels == "pairs" else super()._targets(y_true)

    def call(self, y_true, y_pred):
        if self.labels == "pairs":
            first, second = _pair(y_pred)
            cosine, same = ops.sum(first * second, axis=-1), ops.reshape(y_true, (-1,)) > 0
        else:
            cosine, same = _similarities(y_pred), _same_group(y_true)
        cost = ops.where(same, 1 - cosine, ops.relu(cosine - self.margin))
        return cost if self.labels == "pairs" else _balanced_mean(cost, same)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": self.margin, "labels": self.labels}


@keras.saving.register_keras_serializable("mmret_tf")
class ContrastiveCosine(GroupLoss):
    """Symmetric cross-entropy over the cosines in the batch: InfoNCE, as CLIP uses it
    (arXiv 2103.00020, 对比学习损失).

    Each image must pick its caption among those of the batch, and each caption its image: a softmax
    over `cos / temperature`. Other captions of the same image are left out of the choice.

    Args:
        temperature: A number above 0, or `None` for the temperature that the encoder learns, which
            is in the prediction as "temperature".
        kwargs: `name`, `reduction` and `dtype`, as of any Keras loss.

    Raises:
        ValueError: The temperature is not above 0; in a call, it is `None` and not in `y_pred`.

    `y_true`: `[batch]` group ids; `y_pred`: `{"image": [batch, dim], "text": [batch, dim]}`.

    >>> loss = ContrastiveCosine(temperature=1.0)
    >>> pairs = {"image": ops.eye(2), "text": ops.eye(2)}
    >>> print(round(float(loss([0, 1], pairs)), 4))  # log(1 + exp(-1))
    0.3133
    """

    def __init__(self, temperature: float | None = None, **kwargs):
        super().__init__(**kwargs)
        _check_above_zero("temperature", temperature)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        temperature = self.temperature
        if temperature is None:
            if "temperature" not in y_pred:
                raise ValueError(
                    "ContrastiveCosine(temperature=None) takes the temperature from the model, as "
                    "y_pred['temperature']; give a number to use it with other models"
                )
            temperature = y_pred["temperature"]
        return symmetric_cross_entropy(_similarities(y_pred) / temperature, y_true)

    def get_config(self) -> dict:
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable("mmret_tf")
class TripletCosine(GroupLoss):
    """Hinge loss on triplets (三元组损失), as in VSE++ (arXiv 1707.05612): the right cosine must
    exceed every wrong one by a margin.

    For each pair, `max(0, margin + cos(wrong) - cos(right))`, over the wrong captions of its image
    and the wrong images of its caption.

    Args:
        margin: Above 0.
        negatives: "sum" adds up all negatives; "hardest" takes only the one with the highest
            cosine. From a random start "hardest" collapses: train with "sum" or
            `ContrastiveCosine` first.
        kwargs: `name`, `reduction` and `dtype`, as of any Keras loss.

    Raises:
        ValueError: The margin is not above 0, or `negatives` is unknown.

    `y_true`: `[batch]` group ids; `y_pred`: `{"image": [batch, dim], "text": [batch, dim]}`.

    >>> loss = TripletCosine(margin=0.2)
    >>> image, text = ops.eye(2), ops.array([[0.6, 0.8], [0.0, 1.0]])
    >>> print(round(float(loss([0, 1], {"image": image, "text": text})), 6))  # (0.4 + 0.0) / 2
    0.2
    """

    def __init__(self, margin: float = 0.2, negatives: str = "sum", **kwargs):
        super().__init__(**kwargs)
        if negatives not in NEGATIVES:
            raise ValueError(f"negatives must be one of {', '.join(NEGATIVES)}; got {negatives!r}")
        _check_above_zero("margin", margin)
        self.margin = margin
        self.negatives = negatives

    def call(self, y_true, y_pred):
        cosine = _similarities(y_pred)
        right = ops.diagonal(cosine)
        # A caption of the same image is not a negative: its cost becomes 0.
        wrong = ops.where(_same_group(y_true), -1e9, cosine)
        of_image = ops.relu(self.margin + wrong - right[:, None])
        of_text = ops.relu(self.margin + wrong - right[None, :])
        reduce = ops.sum if self.negatives == "sum" else ops.max
        return reduce(of_image, axis=1) + reduce(of_text, axis=0)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": self.margin, "negatives": self.negatives}


@keras.saving.register_keras_serializable("mmret_tf")
class EuclideanContrastive(GroupLoss):
    """The contrastive loss on Euclidean distance (欧氏距离), the document's other measure (section
    2.4; Hadsell, Chopra and LeCun 2006).

    A matching pair costs its squared distance `d^2`, any other `max(0, margin - d)^2`. Matching
    and other pairs weigh the same.

    Args:
        margin: Distance above which other pairs cost nothing, above 0. Unit vectors are 0 to 2
            apart.
        kwargs: `name`, `reduction` and `dtype`, as of any Keras loss.

    Raises:
        ValueError: The margin is not above 0.

    `y_true`: `[batch]` group ids; `y_pred`: `{"image": [batch, dim], "text": [batch, dim]}`.

    >>> loss = EuclideanContrastive(margin=1.0)
    >>> pairs = {"image": ops.array([[1.0, 0]]), "text": ops.array([[0.0, 1]])}
    >>> print(round(float(loss([0], pairs)), 6))  # one pair, 1 + 1
    2.0
    """

    def __init__(self, margin: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        _check_above_zero("margin", margin)
        self.margin = margin

    def call(self, y_true, y_pred):
        first, second = _pair(y_pred)
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab needs no [batch, batch, dim] array.
        lengths = ops.sum(first**2, axis=1)[:, None] + ops.sum(second**2, axis=1)[None, :]
        squared = ops.relu(lengths - 2 * _similarities(y_pred))
        same = _same_group(y_true)
        # The root has no gradient at 0, where embeddings are equal.
        distance = ops.sqrt(ops.maximum(squared, 1e-12))
        cost = ops.where(same, squared, ops.relu(self.margin - distance) ** 2)
        return _balanced_mean(cost, same)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": self.margin}


@keras.saving.register_keras_serializable("mmret_tf")
class ContrastiveTargets(keras.losses.Loss):
    """Cross-entropy over the cosines with the targets of a batch: each prediction must pick its own
    target. InfoNCE (arXiv 1807.03748) in one direction.

    For encoders that learn existing embeddings, such as `FusedEncoder`. Rows with the same target
    are not negatives of each other.

    Args:
        temperature: Of the softmax over `cos / temperature`, above 0.
        kwargs: `name`, `reduction` and `dtype`, as of any Keras loss.

    Raises:
        ValueError: The temperature is not above 0.

    `y_true`: target embeddings `[batch, dim]`; `y_pred`: embeddings `[batch, dim]`; unit rows both.

    >>> loss = ContrastiveTargets(temperature=1.0)
    >>> print(round(float(loss(ops.eye(2), ops.eye(2))), 4))  # log(1 + exp(-1))
    0.3133
    """

    def __init__(self, temperature: float = 0.05, **kwargs):
        super().__init__(**kwargs)
        _check_above_zero("temperature", temperature)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        logits = ops.matmul(y_pred, ops.transpose(y_true)) / self.temperature
        same = ops.matmul(y_true, ops.transpose(y_true)) > 1 - 1e-5
        itself = ops.eye(ops.shape(logits)[0], dtype="bool")
        logits = ops.where(same & ~itself, -1e9, logits)
        return ops.logsumexp(logits, axis=1) - ops.diagonal(logits)

    def get_config(self) -> dict:
        return {**super().get_config(), "temperature": self.temperature}
