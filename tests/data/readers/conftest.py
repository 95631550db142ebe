"""One small collection that every layout can hold, and the check that it is read."""

import warnings

import pytest
from conftest import draw

from mmret_tf.data import load_pairs

IDS = ["a.jpg", "b.png", "c.jpg"]
CAPTIONS = [['a "red", round ball', "红色的球"], ["a dog"], ["两只猫", "two cats"]]
SPLITS = ["train", "dev", "test"]


@pytest.fixture
def check_layout():
    """A function that draws the three pictures into their folders and loads the collection.

    It takes what is given to `load_pairs`, and the folder of each picture or of all.
    """

    def check(source, *folders):
        folders = folders * 3 if len(folders) == 1 else folders
        paths = [folder / name for folder, name in zip(folders, IDS, strict=True)]
        for path, level in zip(paths, (10, 20, 30), strict=True):
            draw(path, level)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            pairs = load_pairs(source)
            pairs = pairs.subset(sorted(range(3), key=lambda row: pairs.ids[row]))
            assert pairs.ids == IDS
            assert pairs.image_paths == paths
            assert pairs.captions == CAPTIONS
            assert pairs.splits == SPLITS
            assert pairs.quarantined == [] and pairs.attributes == [{}, {}, {}]
            for row, split in enumerate(SPLITS):
                part = load_pairs(source, split=split)
                assert part.ids == pairs.split(split).ids == [IDS[row]]
            assert load_pairs(source, split="val").ids == pairs.split("validation").ids == ["b.png"]

    return check
