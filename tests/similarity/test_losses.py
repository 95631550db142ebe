"""Each loss against values derived by hand, and against a slow oracle on random batches."""

import math

import keras
import numpy as np
import pytest

from mmret_tf.similarity import losses


def unit(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# Images at 0 and 90 degrees, captions at 60 and 90:
#              text 0   text 1
#   image 0     0.5       0
#   image 1     0.866     1
BY_HAND = {"image": unit(0, 90), "text": unit(60, 90)}
C = math.cos(math.radians(30))  # 0.866


def test_cosine_similarity_loss_on_labelled_pairs():
    # Row 0 matches: 1 - 0.5. Row 1 does not: 1 - margin 0.2.
    expected = (0.5 + 0.8) / 2
    for negative in (0, -1):
        loss = losses.CosineSimilarityLoss(margin=0.2, labels="pairs")([1, negative], BY_HAND)
        assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_cosine_similarity_loss_in_a_batch():
    # Matching pairs cost 0.5 and 0, others 0 (0 is below the margin) and C - 0.2.
    expected = (0.5 + 0) / 2 + (0 + C - 0.2) / 2
    loss = losses.CosineSimilarityLoss(margin=0.2)([7, 8], BY_HAND)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_contrastive_cosine():
    # Image 0 picks among (0.5, 0), image 1 among (C, 1); text 0 among (0.5, C), text 1 (0, 1).
    def wrong_pick(right, wrong):
        return math.log(1 + math.exp((wrong - right) / 0.5))

    of_images = wrong_pick(0.5, 0) + wrong_pick(1, C)
    of_texts = wrong_pick(0.5, C) + wrong_pick(1, 0)
    expected = (of_images + of_texts) / 4  # two rows, two directions
    loss = losses.ContrastiveCosine(temperature=0.5)([0, 1], BY_HAND)
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    learned = losses.ContrastiveCosine()([0, 1], {**BY_HAND, "temperature": np.float32(0.5)})
    assert float(learned) == pytest.approx(expected, abs=1e-6)


def test_triplet_cosine():
    # Leads asked for: 0.2. Image 0: 0.2 + 0 - 0.5 < 0. Image 1: 0.2 + C - 1. Text 0: 0.2 + C - 0.5.
    # Text 1: 0.2 + 0 - 1 < 0. With one negative each, the hardest is the sum.
    expected = ((0.2 + C - 1) + (0.2 + C - 0.5)) / 2
    for negatives in losses.NEGATIVES:
        loss = losses.TripletCosine(margin=0.2, negatives=negatives)([0, 1], BY_HAND)
        assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_euclidean_contrastive():
    # On the unit circle d^2 = 2 - 2 cos. Matching: 1 and 0. Others: d = sqrt(2) costs nothing at
    # margin 1, and d = sqrt(2 - 2 C) = 0.5176 costs (1 - 0.5176)^2.
    expected = (1 + 0) / 2 + (0 + (1 - math.sqrt(2 - 2 * C)) ** 2) / 2
    loss = losses.EuclideanContrastive(margin=1.0)([0, 1], BY_HAND)
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def slow_loss(loss, groups, image, text):
    """The definitions, one pair at a time."""
    n = len(groups)
    cos = [[float(image[i] @ text[j]) for j in range(n)] for i in range(n)]
    same = [[groups[i] == groups[j] for j in range(n)] for i in range(n)]
    cells = [(i, j) for i in range(n) for j in range(n)]
    matching = [(i, j) for i, j in cells if same[i][j]]
    others = [(i, j) for i, j in cells if not same[i][j]]

    def mean(costs):
        return sum(costs) / max(1, len(costs))

    if isinstance(loss, losses.CosineSimilarityLoss):
        return mean([1 - cos[i][j] for i, j in matching]) + mean(
            [max(0, cos[i][j] - loss.margin) for i, j in others]
        )
    if isinstance(loss, losses.EuclideanContrastive):
        distance = [[float(np.linalg.norm(image[i] - text[j])) for j in range(n)] for i in range(n)]
        return mean([distance[i][j] ** 2 for i, j in matching]) + mean(
            [max(0, loss.margin - distance[i][j]) ** 2 for i, j in others]
        )
    total = 0.0
    for i in range(n):
        negatives = [j for j in range(n) if not same[i][j]]
        for row in ([cos[i][j] for j in negatives], [cos[j][i] for j in negatives]):
            if isinstance(loss, losses.ContrastiveCosine):
                scores = np.exp(np.array([cos[i][i], *row]) / loss.temperature)
                total -= math.log(scores[0] / scores.sum()) / 2
            else:
                costs = [max(0, loss.margin + score - cos[i][i]) for score in row]
                total += sum(costs) if loss.negatives == "sum" else max(costs, default=0)
    return total / n


ALL = [
    losses.CosineSimilarityLoss(margin=0.1),
    losses.ContrastiveCosine(temperature=0.2),
    losses.TripletCosine(margin=0.3, negatives="sum"),
    losses.TripletCosine(margin=0.3, negatives="hardest"),
    losses.EuclideanContrastive(margin=1.2),
]


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 1], [3, 3, 3, 3, 3]])
def test_losses_agree_with_their_definitions(loss, groups):
    random = np.random.default_rng(0)
    rows = random.standard_normal((2, 5, 3))
    image, text = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    got = float(loss(groups, {"image": image, "text": text}))
    assert got == pytest.approx(slow_loss(loss, groups, image, text), abs=1e-4)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_gradients_are_finite_even_when_all_embeddings_coincide(loss):
    import tensorflow as tf

    same = tf.Variable(unit(30, 30, 30))
    with tf.GradientTape() as tape:
        value = loss([0, 1, 1], {"image": same, "text": same})
    assert np.isfinite(tape.gradient(value, same).numpy()).all()


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_losses_prefer_matching_embeddings_to_collapsed_ones(loss):
    apart = {"image": np.eye(4, dtype="f4"), "text": np.eye(4, dtype="f4")}
    collapsed = {"image": unit(*[30] * 4), "text": unit(*[30] * 4)}
    assert float(loss(range(4), apart)) < float(loss(range(4), collapsed)) - 0.1


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_the_two_modalities_may_have_any_names(loss):
    image, text = unit(0, 90, 200), unit(60, 90, 180)
    expected = float(loss([0, 1, 1], {"image": image, "text": text}))
    # Keras sorts dicts by key; the order of the two changes no loss.
    for names in (("sound", "text"), ("video", "image")):
        pair = dict(zip(names, (image, text), strict=True)) | {"temperature": np.float32(0.5)}
        assert float(loss([0, 1, 1], pair)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("names", [("image",), ("image", "text", "sound"), ("temperature",)])
def test_a_prediction_has_two_modalities(names):
    prediction = {name: unit(0, 90) for name in names}
    for loss in ALL:
        with pytest.raises(ValueError, match="a loss takes the embeddings of two modalities; got"):
            loss([0, 1], prediction)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_losses_survive_serialization(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: losses.CosineSimilarityLoss(margin=2), "margin must be a cosine, -1 to 1; got 2"),
        (lambda: losses.CosineSimilarityLoss(labels="x"), "one of groups, pairs; got 'x'"),
        (lambda: losses.ContrastiveCosine(temperature=0), "temperature must be above 0; got 0"),
        (lambda: losses.TripletCosine(margin=0), "above 0; got 0"),
        (lambda: losses.TripletCosine(negatives="x"), "one of sum, hardest; got 'x'"),
        (lambda: losses.EuclideanContrastive(margin=-1), "above 0; got -1"),
        (lambda: losses.ContrastiveCosine()([0, 1], BY_HAND), "temperature from the model"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_contrastive_targets_is_a_softmax_over_the_targets():
    """Cosines of row 0 with the targets: 0.6 and 0.8; of row 1: 0 and 1; at temperature 0.5."""
    predictions = np.array([[0.6, 0.8], [0.0, 1.0]], np.float32)
    targets = np.eye(2, dtype=np.float32)
    expected = [
        np.log(np.exp(1.2) + np.exp(1.6)) - 1.2,
        np.log(np.exp(0.0) + np.exp(2.0)) - 2.0,
    ]
    loss = losses.ContrastiveTargets(temperature=0.5)
    assert np.isclose(float(loss(targets, predictions)), np.mean(expected), atol=1e-5)


def test_equal_targets_are_not_negatives_of_each_other():
    predictions = np.array([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], np.float32)
    targets = np.array([[1.0, 0], [1, 0], [0, 1]], np.float32)
    rows = [0, 2]
    loss = losses.ContrastiveTargets(temperature=0.5, reduction="none")
    expected = loss(targets[rows], predictions[rows]).numpy()
    assert np.allclose(loss(targets, predictions).numpy()[0], expected[0], atol=1e-5)
    again = losses.ContrastiveTargets.from_config(loss.get_config())
    assert np.array_equal(again(targets, predictions), loss(targets, predictions))
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        losses.ContrastiveTargets(temperature=0)
