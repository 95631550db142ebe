"""Score fusion: weighted means and reciprocal ranks by eye, absent scores, and mistakes."""

import numpy as np
import pytest

from mmret_tf.fusion import ReciprocalRankFusion, WeightedScores

SCORES = {
    "image": np.array([[0.9, 0.5, np.nan], [0.1, 0.1, 0.3]], np.float32),
    "text": np.array([[0.2, 0.6, 0.4], [np.nan, 0.0, np.nan]], np.float32),
}


def test_weighted_scores_by_eye():
    assert np.allclose(
        WeightedScores({"image": 1.0, "text": 3.0})(SCORES).numpy(),
        [[(0.9 + 0.6) / 4, (0.5 + 1.8) / 4, 0.4], [0.1, 0.1 / 4, 0.3]],
    )


def test_reciprocal_ranks_by_eye():
    """Image ranks 1, 2, none and 3, 3, 1 (ties get the worst rank); text 3, 1, 2 and none, 1."""
    expected = [
        [(1 / 61 + 1 / 63) / 2, (1 / 62 + 1 / 61) / 2, 1 / 62],
        [1 / 63, (1 / 63 + 1 / 61) / 2, 1 / 61],
    ]
    assert np.allclose(ReciprocalRankFusion()(SCORES).numpy(), expected)


@pytest.mark.parametrize(
    "layer", [WeightedScores({"image": 1.0, "text": 2.0}), ReciprocalRankFusion(7)]
)
def test_items_without_a_score_come_last_and_settings_are_kept(layer):
    nothing = {name: np.full((2, 3), np.nan, np.float32) for name in SCORES}
    assert np.all(layer(nothing).numpy() == -np.inf)
    again = type(layer).from_config(layer.get_config())
    assert np.array_equal(again(SCORES).numpy(), layer(SCORES).numpy())


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="above 0, one for image, text; got {'image': 1.0}"):
        WeightedScores({"image": 1.0})(SCORES)
    with pytest.raises(ValueError, match="weights must be above 0"):
        WeightedScores({"image": -1.0, "text": 1.0})(SCORES)
    with pytest.raises(ValueError, match="constant must be at least 0; got -1"):
        ReciprocalRankFusion(-1)
