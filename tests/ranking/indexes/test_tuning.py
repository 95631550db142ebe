"""The search for the fastest setting, on a searcher whose recall and time are formulas."""

import numpy as np
import pytest

from mmret_tf.ranking.indexes import tuning
from mmret_tf.ranking.indexes.tuning import Setting, Trial, fastest_setting, fewest_leaves


class Model(Trial):
    """Finds 1 - 1 / (2 leaves) of the best, but no more than 1 - 1 / candidates of them; takes a
    second a leaf and a hundredth a candidate."""

    def __init__(self, target):
        super().__init__(None, np.zeros((10, 1)), None, target)
        self.asked = []

    def recall(self, setting):
        self.asked.append(setting)
        return min(1 - 0.5 / setting.leaves_to_search, 1 - 1 / setting.reorder), 0.0

    def seconds(self, setting, single=False):
        return setting.leaves_to_search + setting.reorder / 100


@pytest.mark.parametrize(
    ("target", "leaves", "candidates"),
    # 1 - 1/2n: 0.5, 0.75, 0.83, 0.875, 0.9, ... The candidates must be at least 1 / (1 - target).
    [(0.5, 1, 10), (0.7, 2, 10), (0.89, 5, 10), (0.95, 10, 20), (0.98, 25, 50)],
)
def test_the_fastest_pair_is_found(target, leaves, candidates):
    setting = fastest_setting(Model(target), (1, 100), (10, 1000), seconds=60)
    assert setting == Setting(leaves, candidates)


def test_fixed_numbers_stay_and_the_widest_setting_is_the_last_resort():
    assert fastest_setting(Model(0.9), (7, 7), (10, 1000), 60).leaves_to_search == 7
    assert fastest_setting(Model(0.9), (1, 100), (300, 300), 60) == Setting(5, 300)
    assert fastest_setting(Model(0.9), (7, 7), (300, 300), 60) == Setting(7, 300)
    assert fastest_setting(Model(0.9), (2, 2), (300, 300), 60) == Setting(2, 300)  # too few
    assert fastest_setting(Model(0.9999), (1, 100), (10, 1000), 60) == Setting(100, 1000)
    assert fastest_setting(Model(0.5), (1, 1), (10, 1000), 60) == Setting(1, 10)  # no tree
    model = Model(0.9985)  # needs 667 candidates, more than it begins with
    assert fastest_setting(model, (1, 1000), (10, 1000), 60).leaves_to_search >= 334


def test_the_fewest_leaves_are_found():
    for target in (0.5, 0.8, 0.96, 0.993):
        right = int(np.ceil(0.5 / (1 - target) - 1e-9))
        assert fewest_leaves(Model(target), 10_000, (1, 500)) == right
    assert fewest_leaves(Model(0.999), 10_000, (1, 400)) is None
    assert fewest_leaves(Model(0.96), 20, (1, 400)) is None  # these candidates allow 0.95


def test_without_time_the_first_setting_that_is_enough_is_taken():
    model, lines = Model(0.9), []
    setting = fastest_setting(model, (1, 100), (10, 1000), seconds=0, progress=lines.append)
    assert setting.leaves_to_search == 5  # with all of 500 candidates: found before the first look
    assert model.asked[0] == Setting(1, 500) and len(lines) == 1


def test_each_measurement_is_told_in_a_line():
    lines = []
    fastest_setting(Model(0.7), (1, 100), (10, 12), seconds=60, progress=lines.append)
    # 2 leaves and 10 candidates take 2.1 seconds for 10 queries.
    assert len(lines) == 2 and lines[1] == "2 leaves, 10 candidates: 5 queries a second"


def test_one_standard_error_is_left_to_spare():
    # Half of 100 queries find all, half find nine of ten: 0.95, with an error of 0.005.
    found = np.ones((100, 10))
    found[::2, 0] = 0
    trial = Trial(lambda queries, setting: (None, found), np.zeros((100, 1)), np.ones((100, 1)), 0)
    recall, error = trial.recall(Setting(1, 10))
    assert (recall, error) == (pytest.approx(0.95), pytest.approx(0.005))
    for target, enough in ((0.944, True), (0.946, False)):
        trial.target = target
        assert trial.is_enough(Setting(1, 10)) == enough


def test_of_a_part_of_a_gallery_only_the_best_of_the_whole_are_wanted():
    # The whole's best are above 0.5: 2, 1 and none of the three scores that each query finds here.
    found = np.array([[0.9, 0.8, 0.1], [0.6, 0.2, 0.1], [0.3, 0.2, 0.1]])
    enough, wanted = np.full((3, 1), 0.5), np.array([3, 1, 0])  # one of the first three is missed
    trial = Trial(lambda *_: (None, found), np.zeros((3, 1)), enough, 0.7, wanted)
    recall, error = trial.recall(Setting(1, 3))
    # Deviations 2 - 3 * 0.75, 1 - 0.75 and 0: -0.25, 0.25, 0.
    assert recall == 3 / 4 and error == pytest.approx((0.125 / 3) ** 0.5 * 3**0.5 / 4)
    trial.wanted = np.zeros(3, int)  # all of the best are in other parts
    assert trial.recall(Setting(1, 3)) == (1, 0)


def test_batches_and_single_queries_are_timed(monkeypatch):
    order = []
    trial = Trial(
        lambda queries, setting: order.append((queries.shape, setting)), np.zeros((3, 1)), None, 1
    )
    monkeypatch.setattr(tuning.time, "perf_counter", iter(range(100)).__next__)
    assert trial.seconds(Setting(1, 1)) == trial.seconds(Setting(1, 1), single=True) == 1
    assert order == [((3, 1), Setting(1, 1))] * tuning.ROUNDS + [((1, 1), Setting(1, 1))] * 3
