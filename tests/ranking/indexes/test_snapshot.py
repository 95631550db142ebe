"""What an index is built from, and the files that hold it."""

import json

import numpy as np
import pytest
from ranking.galleries import METRICS

from mmret_tf.ranking.indexes.snapshot import Snapshot, checked_segment, read_snapshot


def snapshot_of(vectors, ids, attributes=None, metric="cosine"):
    return Snapshot.of(checked_segment(vectors, ids, metric, attributes))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (["a", "b"], "there are 3 rows and 2 ids"),
        ("abc", "must be a list of strings or integers"),
        (None, "must be a list of strings or integers"),
        (["a", "b", "a"], "1 come more than once: 'a'"),
        ([1, 1, 1], "1 come more than once: 1"),
        (["a", 1, 2], "all strings or all integers; got int, str"),
        ([0.0, 1.0, 2.0], "got float"),
        ([True, False, 2], "got bool, int"),
        ([0, 1, 2**63], "must fit"),
        (["a", "b", "c\0"], "without NUL"),
    ],
)
def test_ids_that_cannot_be_given_back_are_refused(ids, reason):
    with pytest.raises(ValueError, match=reason):
        checked_segment(np.eye(3), ids, "cosine", None)


@pytest.mark.parametrize(
    "ids",
    [
        np.array(["01", "1"]),
        [np.str_("01"), "1"],
        np.array([7, -8], np.int32),
        range(2),
        ["\udc80", "红色的圆"],
    ],
)
def test_ids_keep_their_kind(ids):
    found, _ = snapshot_of(np.eye(2), ids).nearest(np.float32([[0, 1]]), 2, None)
    assert found.tolist() == [[ids[1], ids[0]]]
    assert found.dtype.kind == ("U" if isinstance(ids[0], str) else "i")


@METRICS
def test_bad_embeddings_metrics_and_attributes_are_refused(metric):
    others = ([], [[]], [1.0, 2.0], np.zeros((0, 2)), np.zeros((2, 1, 2)), [["a", "b"]], [[1], []])
    for rows in others:
        with pytest.raises(ValueError, match="embeddings must be"):
            checked_segment(rows, ["a"], metric, None)
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="embeddings holds .* in 1 rows, the first is row 1"):
            checked_segment([[1, 2], [bad, 0]], ["a", "b"], metric, None)
    with pytest.raises(ValueError, match='metric must be "cosine" or "euclidean"; got'):
        checked_segment(np.eye(2), ["a", "b"], "l1", None)
    with pytest.raises(
        ValueError, match="each of 2 embeddings; got 2 ids and the attributes of 1 it"
    ):
        checked_segment(np.eye(2), ["a", "b"], metric, [{}])


def test_an_array_is_copied_and_rows_of_unit_length_stay_in_their_file(tmp_path):
    points = np.array([[0.6, 0.8], [1, 0]], np.float32)
    copied = checked_segment(points, ["a", "b"], "euclidean", None)
    for name, rows in (("unit", points), ("longer", 2 * points)):
        np.save(tmp_path / f"{name}.npy", rows)
        mapped = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        segment = checked_segment(mapped, ["a", "b"], "cosine", None)
        assert (segment.vectors is mapped) == (name == "unit")
        np.testing.assert_allclose(segment.vectors, points)
        assert checked_segment(mapped, ["a", "b"], "euclidean", None).vectors is mapped
    points[:] = 9
    assert copied.vectors.max() == 1


def test_changes_by_eye():
    first = snapshot_of(np.eye(3), ["x", "y", "z"], [{"n": 1}, {"n": 2}, {"n": 3}])
    new = checked_segment([[0, 1, 1]], ["x"], "cosine", [{"m": 4}])
    second = first.changed(new, dead=[0])
    assert (len(second), second.n_dead, second.ids.tolist()) == (3, 1, ["x", "y", "z", "x"])
    assert [second.row_of(key) for key in ("x", "y", "no")] == [3, 1, None]
    assert second.record_of(3) == {"m": 4} and second.record_of(1) == {"n": 2}
    assert second.allowed(None, ["z", "no"]).tolist() == [False, True, False, True]
    assert second.allowed({"$or": [{"n": 1}, {"m": 4}]}, []).tolist() == [False] * 3 + [True]
    assert second.compact().ids.tolist() == ["y", "z", "x"]
    third = second.changed(None, dead=[3])
    assert third.row_of("x") is None and third.compact().ids.tolist() == ["y", "z"]
    # The first is as it was.
    assert first.allowed(None, []) is None and first.compact() is first.base and len(first) == 3


def test_built_and_fresh_rows_are_ranked_together():
    first = snapshot_of([[1, 0], [0.6, 0.8]], [1, 2])
    new = checked_segment([[1, 0], [0.8, 0.6]], [3, 4], "cosine", None)
    ids, scores = first.changed(new, dead=[]).nearest(np.float32([[1, 0]]), 3, None)
    assert ids.tolist() == [[1, 3, 4]]  # of equal scores the first row comes first
    np.testing.assert_allclose(scores, [[1, 1, 0.8]])


def test_files_give_back_the_snapshot(tmp_path):
    attributes = [{"price": np.int64(5)}, {"price": 7.5, "季": "春天"}, {"gone": True}]
    first = snapshot_of(np.eye(3), ["a", "007", "c"], attributes)
    new = checked_segment([[0.6, 0.8, 0]], ["新"], "cosine", [{"price": 1}])
    manifest = first.changed(new, dead=[2]).write(tmp_path)
    assert manifest == {"n": 3, "n_fresh": 1, "dim": 3, "metric": "cosine"}
    items = json.loads((tmp_path / "items.json").read_text())
    assert (items["ids"], items["dead"]) == (["a", "007", "c", "新"], [2])
    read = read_snapshot(tmp_path, manifest)
    assert isinstance(read.base.vectors, np.memmap) and read.engine is read.base
    assert read.dead.tolist() == [False, False, True, False]
    items = read.compact()
    assert items.ids.tolist() == ["a", "007", "新"]
    assert items.attributes.records == [{"price": 5}, {"price": 7.5, "季": "春天"}, {"price": 1}]
    np.testing.assert_allclose(items.vectors, [[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0]])


def test_attributes_that_are_not_json_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"only as JSON; got \{1, 2\}"):
        snapshot_of(np.eye(1), ["a"], [{"when": {1, 2}}]).write(tmp_path)
