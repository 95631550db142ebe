"""Settings of ScaNN that are refused, and what is searched when a leaf holds too little."""

import dataclasses

import numpy as np
import pytest
from ranking.galleries import clustered

from mmret_tf._checks import checked_queries
from mmret_tf.ranking import BruteForceIndex, ScannConfig
from mmret_tf.ranking.indexes.scann_engine import Goal, ScannEngine, sample
from mmret_tf.ranking.indexes.snapshot import checked_segment
from mmret_tf.ranking.indexes.tuning import Setting


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"leaves": 0}, "leaves must be an integer of at least 1; got 0"),
        ({"leaves": 3, "leaves_to_search": 4}, "at most the number of leaves, 3; got 4"),
        ({"leaves": None}, "leaves must be an integer of at least 1; got None"),
        ({"leaves": 3, "leaves_to_search": 0}, "leaves_to_search must be an integer"),
        ({"leaves": 3, "reorder": 1.5}, "reorder must be an integer"),
    ],
)
def test_an_impossible_config_is_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        ScannConfig(**fields)


@pytest.mark.parametrize("target", [0, 1.01, -1, float("nan"), "all"])
def test_a_recall_target_is_a_share(target):
    with pytest.raises(ValueError, match="recall_target must be above 0 and at most 1"):
        Goal(target, 10, None)


def test_more_leaves_are_searched_if_the_first_hold_fewer_than_k():
    points, queries = clustered(1000), clustered(20, seed=1)
    exact = BruteForceIndex.build(points, range(1000))
    stats = {"k": 10, "leaves_to_search": 1, "reorder": 10}
    engine = ScannEngine(exact.engine, ScannConfig(leaves=20), None, stats)

    class FewInEachLeaf:
        """Finds all but the tenth, unless it is asked for more."""

        def search_batched_parallel(self, queries, k, reorder, leaves):
            rows, scores = exact.search(queries, k)
            if k == 10:
                scores[:, -1] = np.nan
            return rows, scores

    engine = dataclasses.replace(engine, searcher=FewInEachLeaf())
    rows, scores = engine.nearest(checked_queries(queries, 32, "cosine"), 10)
    np.testing.assert_array_equal(rows, exact.search(queries)[0])
    assert np.isfinite(scores).all()


def test_more_results_than_the_engine_was_tuned_for_are_searched_more_widely():
    rows = checked_segment(np.eye(100), range(100), "cosine", None)
    stats = {"k": 10, "leaves_to_search": 3, "reorder": 20}
    engine = ScannEngine(rows, ScannConfig(leaves=8), None, stats)
    assert engine.setting(5) == engine.setting(10) == Setting(3, 20)
    assert engine.setting(40) == Setting(6, 80)  # twice the leaves for four times the results
    assert engine.setting(100) == Setting(8, 100)  # there are no more


def test_a_sample_has_different_rows_in_their_order():
    few = np.arange(5)
    assert sample(few).tolist() == few.tolist() and sample(few) is not few
    many = sample(np.arange(5000))
    assert len(many) == 2000 and (np.diff(many) > 0).all()
