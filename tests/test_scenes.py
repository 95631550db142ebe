"""What the picture set promises: splits that share nothing, pictures and captions that agree."""

import filecmp
import itertools
import json
import re
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageColor

from mmret_tf import scenes
from mmret_tf.scenes import Scene, SceneObject, cached_scenes, draw_scenes, write_scenes

ENGLISH_THING = re.compile(r"(small|large) (\w+) (\w+)")
CHINESE_THING = re.compile(r"(?:([小大])的(.色)|(.色)的([小大]))(圆形|正方形|三角形|五角星|十字形)")
ENGLISH_OF = {chinese: english for english, chinese in scenes.CHINESE_WORDS.items()}

# What captions say with letters for the objects: A is the leftmost or topmost, C the last one.
SENTENCES = {
    None: """a single A | there is only a A in the picture | one A and nothing else |
        图中只有一个A | 单独一个A | 一个A，没有别的图形""",
    "left of": """a A to the left of a B | there is a B on the right of a A |
        a B with a A on its left | a A with a B on its right |
        A在B的左边 | B在A的右边 | B的左侧有一个A | 图中有一个A，它的右边是一个B""",
    "above": """a A above a B | there is a B below a A |
        a B with a A above it | a A with a B under it |
        A在B的上面 | B在A的下面 | B的上方有一个A | 图中有一个A，它的下面是一个B""",
    "row": """a A, a B and a C in a row from left to right |
        from left to right there are a A, a B and a C |
        a B between a A on the left and a C on the right |
        从左到右依次是A、B和C | A、B和C从左到右排成一行 | B在中间，左边是A，右边是C""",
    "column": """a A, a B and a C in a column from top to bottom |
        from top to bottom there are a A, a B and a C |
        a B between a A above and a C below |
        从上到下依次是A、B和C | A、B和C从上到下排成一列 | B在中间，上面是A，下面是C""",
}
SENTENCES = {relation: re.split(r"\s*\|\s*", text) for relation, text in SENTENCES.items()}


def read(caption):
    """Understand a caption without the module: its sentence, and the combination it states."""
    things = []
    for size, colour, shape in ENGLISH_THING.findall(caption):
        things.append(SceneObject(shape, colour, size))
    for size, colour, colour_first, size_last, shape in CHINESE_THING.findall(caption):
        words = shape, colour or colour_first, size or size_last
        things.append(SceneObject(*(ENGLISH_OF[word] for word in words)))
    rest = CHINESE_THING.sub("?", ENGLISH_THING.sub("?", caption))
    for relation, sentences in SENTENCES.items():
        for sentence in sentences:
            if re.sub("[ABC]", "?", sentence) == rest:
                named = dict(zip(re.findall("[ABC]", sentence), things, strict=True))
                return sentence, (tuple(named[letter] for letter in sorted(named)), relation)
    raise AssertionError(f"not a sentence that was expected: {caption}")


def combination(scene):
    return scene.objects, scene.relation


@pytest.fixture(scope="module")
def train():
    return draw_scenes("train", size=600, seed=0)


def test_scenes_stay_as_they_are():
    # Whatever the process, the machine and the release of Python.
    assert draw_scenes("dev", size=9, seed=0)[-1] == Scene(
        "dev-0-00008",
        (SceneObject("cross", "orange", "large"), SceneObject("square", "blue", "large")),
        "left of",
        (
            "a large orange cross with a large blue square on its right",
            "a large orange cross to the left of a large blue square",
            "蓝色的大正方形的左侧有一个橙色的大十字形",
            "橙色的大十字形在蓝色的大正方形的左边",
        ),
    )


# --- captions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_every_caption_states_all_that_is_in_the_scene(split):
    for scene in draw_scenes(split, size=300, seed=1):
        assert len(set(scene.captions)) == 4
        is_english = [caption.isascii() for caption in scene.captions]
        assert is_english == [True, True, False, False]
        for caption in scene.captions:
            assert read(caption)[1] == combination(scene), caption


def test_every_phrasing_is_used(train):
    used = {read(caption)[0] for scene in train for caption in scene.captions}
    assert used == set(itertools.chain(*SENTENCES.values()))
    assert any("红色的大圆形" in caption for scene in train for caption in scene.captions)
    assert any("大的红色圆形" in caption for scene in train for caption in scene.captions)


# --- splits --------------------------------------------------------------------------------------


def test_no_size_and_no_seed_brings_a_combination_into_two_splits():
    seen = {
        split: {
            combination(scene)
            for size, seed in [(1, 5), (30, 0), (30, 1), (900, 2), (1500, 2**32 - 1)]
            for scene in draw_scenes(split, size, seed)
        }
        for split in scenes.SPLITS
    }
    assert all(len(combinations) > 1500 for combinations in seen.values())
    assert not seen["train"] & seen["dev"]
    assert not seen["train"] & seen["test"]
    assert not seen["dev"] & seen["test"]


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_no_two_scenes_of_a_split_are_alike(split):
    drawn = draw_scenes(split, size=1500, seed=0)
    assert len({combination(scene) for scene in drawn}) == 1500
    assert len({scene.id for scene in drawn}) == 1500
    for scene in drawn:
        kinds = {(thing.shape, thing.colour) for thing in scene.objects}
        assert len(kinds) == len(scene.objects)


def test_a_small_world_is_dealt_out_completely_to_the_three_splits(monkeypatch):
    # Two colours of two shapes in two sizes: 8 things, and 6 of another kind for each, then 4.
    words = itertools.product(["circle", "star"], ["red", "blue"], ["small", "large"])
    world = tuple(itertools.starmap(SceneObject, words))
    by_hand = 8 + 2 * 8 * 6 + 2 * 8 * 6 * 4
    monkeypatch.setattr(scenes, "OBJECTS", world)
    dealt = []
    for split in scenes.SPLITS:
        with pytest.raises(ValueError, match="size must be at most") as caught:
            draw_scenes(split, size=by_hand + 1)
        possible = int(re.search(r"at most (\d+)", str(caught.value))[1])
        assert str(caught.value) == (
            f"size must be at most {possible}, the number of different scenes in "
            f"the split '{split}'; got {by_hand + 1}"
        )
        dealt += map(combination, draw_scenes(split, size=possible))
    assert len(dealt) == len(set(dealt)) == by_hand


def test_nearly_all_scenes_are_for_training():
    splits = Counter(
        scenes.split_of(((left, right), "left of"))
        for left, right in itertools.product(scenes.OBJECTS, repeat=2)
    )
    # 6,400 pairs: one standard deviation is 0.5 % of them for train, 0.4 % for dev and test.
    assert splits["train"] / 6400 == pytest.approx(0.8, abs=0.02)
    assert splits["dev"] / 6400 == pytest.approx(0.1, abs=0.02)
    assert splits["test"] / 6400 == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("split", "size", "expected"),
    [
        ("train", 1, {2: 1}),
        ("train", 100, {1: 15, 2: 60, 3: 25}),
        ("test", 20, {1: 3, 2: 12, 3: 5}),
    ],
)
def test_most_scenes_have_two_objects(split, size, expected):
    lengths = [len(scene.objects) for scene in draw_scenes(split, size)]
    assert Counter(lengths) == expected
    assert size == 1 or lengths != sorted(lengths)


def test_larger_scenes_stand_in_where_small_ones_run_out():
    possible = Counter(scenes.split_of(((thing,), None)) for thing in scenes.OBJECTS)
    drawn = draw_scenes("test", size=500)
    counts = Counter(len(scene.objects) for scene in drawn)
    assert 0 < possible["test"] < 75
    assert counts == {1: possible["test"], 2: 375 - possible["test"], 3: 125}


def test_every_word_of_the_test_is_learnt_in_training(train):
    def words(drawn):
        return {word for scene in drawn for thing in scene.objects for word in str(thing).split()}

    everything = {*scenes.SHAPES, *scenes.COLOURS, *scenes.SIZES}
    assert words(train) == words(draw_scenes("test", size=100)) == everything


# --- pictures ------------------------------------------------------------------------------------

# Area as a fraction of width times height, and how far the centre of mass lies below the middle as
# a fraction of the height: circle pi/4 and 0, square 1 and 0, triangle 1/2 and 1/6, cross 0.55 and
# 0, star 0.39 and 0.05. Pixels blur the tips, so areas may be larger; no two ranges overlap.
FORMS = {
    "circle": [(0.74, 0.83), (-0.02, 0.02)],
    "square": [(0.98, 1.02), (-0.02, 0.02)],
    "triangle": [(0.50, 0.62), (0.13, 0.17)],
    "star": [(0.39, 0.56), (0.025, 0.08)],
    "cross": [(0.54, 0.61), (-0.02, 0.02)],
}


# The longer side of an object in pixels, by number of objects: 1.8 to 2 times its radius.
EXTENTS = {
    1: {"small": (10, 14.5), "large": (19, 24.5)},
    2: {"small": (10, 14.5), "large": (19, 24.5)},
    3: {"small": (8, 12.5), "large": (13.5, 18.5)},
}


def look(scene):
    """Find the objects of a picture by their pixels alone.

    Returns, for each from left to right or from top to bottom, its colour (24 bits) and how much
    of each pixel it covers, `[64, 64]`.
    """
    pixels = np.asarray(scene.draw(), dtype=int)
    codes = pixels @ [65536, 256, 1]
    background = most_common(codes)
    is_upright = scene.relation in ("above", "column")
    line = np.flatnonzero((codes != background).any(axis=1 if is_upright else 0))
    found = []
    for part in np.split(line, np.flatnonzero(np.diff(line) > 1) + 1):  # apart by an empty line
        window = (part, slice(None)) if is_upright else (slice(None), part)
        colour = most_common(codes[window][codes[window] != background])
        before, after = (pixels[codes == code][0] for code in (background, colour))
        channel = np.abs(after - before).argmax()  # where the object is seen best
        covered = np.zeros((64, 64))
        covered[window] = ((pixels - before) / (after - before)[channel])[window][..., channel]
        found.append((colour, covered))
    return found


def most_common(codes):
    values, counts = np.unique(codes, return_counts=True)
    return values[counts.argmax()]


def middle_and_length(covered, axis):
    """Of the extent along one axis, in pixels; pixels at the edge count for a part."""
    profile = covered.max(axis=1 - axis)
    return profile @ np.arange(64) / profile.sum(), profile.sum()


def test_pictures_show_what_the_attributes_say(train):
    for scene in train[:400]:
        found = look(scene)
        assert len(found) == len(scene.objects), scene
        middles = []
        for thing, (colour, covered) in zip(scene.objects, found, strict=True):
            assert tuple(int(colour).to_bytes(3, "big")) == ImageColor.getrgb(thing.colour), scene

            middle_row, height = middle_and_length(covered, axis=0)
            middle_column, width = middle_and_length(covered, axis=1)
            middles.append((middle_row, middle_column))
            low, high = EXTENTS[len(found)][thing.size]
            assert low < max(height, width) < high, scene

            centre_of_mass = covered.sum(axis=1) @ np.arange(64) / covered.sum()
            form = covered.sum() / (height * width), (centre_of_mass - middle_row) / height
            for value, (low, high) in zip(form, FORMS[thing.shape], strict=True):
                assert low < value < high, scene

        for down, right in np.diff(middles, axis=0):  # from each object to the next
            is_upright = scene.relation in ("above", "column")
            along, across = (down, right) if is_upright else (right, down)
            assert along > 1.5 * abs(across), scene


def test_objects_keep_away_from_the_edge(train):
    for scene in train[:300]:
        pixels = np.array(scene.draw())
        background = pixels[0, 0]
        pixels[3:-3, 3:-3] = background
        assert (pixels == background).all(), scene


def test_pictures_differ_in_place_and_background():
    red = SceneObject("circle", "red", "large")
    pictures = [np.asarray(Scene(str(i), (red,), None, ()).draw()) for i in range(20)]
    backgrounds = np.array([picture[0, 0] for picture in pictures], dtype=int)
    assert len(np.unique(backgrounds, axis=0)) > 15
    assert np.ptp(backgrounds, axis=1).max() <= 12  # all of them are greys,
    assert np.ptp(backgrounds.mean(axis=1)) > 20  # some lighter, some darker
    middles = [np.argwhere((picture == (255, 0, 0)).all(2)).mean(axis=0) for picture in pictures]
    assert np.ptp(middles, axis=0).min() > 2  # of 4 pixels, both ways,
    assert np.abs(np.array(middles) - 31.5).max() < 3  # around the middle of the picture


# --- files ---------------------------------------------------------------------------------------


def test_folder_holds_what_was_drawn(tmp_path):
    folder = write_scenes(tmp_path / "new" / "scenes", "dev", size=12, seed=3)
    assert folder == tmp_path / "new" / "scenes"
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = draw_scenes("dev", size=12, seed=3)
    for i, (line, scene) in enumerate(zip(lines, drawn, strict=True)):
        assert json.loads(line) == {
            "id": f"dev-3-{i:05}",
            "image": f"{i:04}.png",
            "captions": list(scene.captions),
            "split": "dev",
            "attributes": {
                "objects": [
                    {"shape": thing.shape, "colour": thing.colour, "size": thing.size}
                    for thing in scene.objects
                ],
                "relation": scene.relation,
            },
        }
        assert scene.captions[2] in line  # readable: Chinese is not written as \u7ea2
        with Image.open(folder / f"{i:04}.png") as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
            assert np.array_equal(np.asarray(picture), np.asarray(scene.draw()))
    names = [f"{i:04}.png" for i in range(12)] + ["captions.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scenes"]


def test_same_arguments_same_bytes(tmp_path):
    first, second = (write_scenes(tmp_path / name, "test", 20, seed=4) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert filecmp.cmpfiles(first, second, names, shallow=False) == (names, [], [])


def test_other_arguments_other_scenes():
    drawn = [
        draw_scenes(*arguments)
        for arguments in [("dev", 50, 0), ("dev", 50, 1), ("test", 50, 0), ("train", 50, 0)]
    ]
    for one, other in itertools.combinations(drawn, 2):
        assert not {scene.id for scene in one} & {scene.id for scene in other}
        # Few combinations or none are common, by chance, and those do not look alike.
        assert len(set(map(combination, one)) & set(map(combination, other))) < 10
        pictures = [{scene.draw().tobytes() for scene in scenes_} for scenes_ in (one, other)]
        assert not pictures[0] & pictures[1]


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(list(write_scenes(tmp_path / "empty", size=2).iterdir())) == 3

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine", encoding="utf-8")
    for name, problem in [("full", "holds files already"), ("full/thesis.txt", "is a file")]:
        with pytest.raises(ValueError, match=f"must be new or empty; .*{name} {problem}, choose"):
            write_scenes(tmp_path / name, size=2)
    assert (tmp_path / "full" / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def interrupt_drawing(monkeypatch, happens):
    """Let something happen, once, when the third picture is drawn."""
    draw, calls = Scene.draw, itertools.count(1)

    def draw_or_not(scene):
        if next(calls) == 3:
            happens()
        return draw(scene)

    monkeypatch.setattr(Scene, "draw", draw_or_not)


def test_nothing_is_left_of_a_drawing_that_was_cut_short(tmp_path, monkeypatch):
    def stop():
        assert len(list(tmp_path.iterdir())) == 1  # a temporary folder, not yet the one asked for
        assert not (tmp_path / "scenes").exists()
        raise KeyboardInterrupt

    interrupt_drawing(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", size=5)
    assert not list(tmp_path.iterdir())


# --- cache ---------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path / "datasets" / "mmret_scenes"


def test_cached_scenes_are_drawn_once(cache, monkeypatch):
    folder = cached_scenes("dev", size=3, seed=8)
    assert folder == cache / f"v{scenes.DRAWING_VERSION}-dev-3-8"
    assert (folder / "captions.jsonl").read_text(encoding="utf-8").count("\n") == 3
    monkeypatch.delattr(Scene, "draw")
    assert cached_scenes("dev", size=3, seed=8) == folder
    with pytest.raises(AttributeError, match="draw"):
        cached_scenes("dev", size=3, seed=9)


def test_the_cache_lies_in_the_keras_home(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # the same on Windows
    name = f"v{scenes.DRAWING_VERSION}-train-1-0"
    expected = tmp_path / ".keras" / "datasets" / "mmret_scenes" / name
    assert cached_scenes("train", size=1, seed=0) == expected


def test_the_slower_of_two_processes_uses_the_folder_of_the_faster(cache, monkeypatch):
    faster = []
    interrupt_drawing(monkeypatch, lambda: faster.append(cached_scenes("dev", 5)))
    slower = cached_scenes("dev", 5)
    assert faster == [slower]
    assert len(list(slower.iterdir())) == 6
    assert list(cache.iterdir()) == [slower]  # the slower one's own drawing is gone


def test_many_at_once_agree(cache):
    barrier, folders = threading.Barrier(6), []

    def ask():
        barrier.wait()
        folders.append(cached_scenes("test", 10))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [folders[0]] * 6
    assert len(list(folders[0].iterdir())) == 11
    assert list(cache.iterdir()) == [folders[0]]


def test_something_else_in_the_place_of_the_cache_is_not_overwritten(cache):
    folder = cached_scenes("dev", 2)
    (folder / "captions.jsonl").unlink()
    with pytest.raises(ValueError, match="holds files already"):
        cached_scenes("dev", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of train, dev, test; got 'val'"),
        ({"split": None}, "split must be one of train, dev, test; got None"),
        ({"split": "../dev"}, "split must be one of train, dev, test; got '../dev'"),
        ({"size": 0}, "size must be a whole number of scenes, at least 1; got 0"),
        ({"size": 2.5}, "size must be a whole number of scenes, at least 1; got 2.5"),
        ({"size": "7"}, "size must be a whole number of scenes, at least 1; got '7'"),
        ({"seed": -1}, "seed must be an integer from 0 to 2**32 - 1; got -1"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 2**32 - 1; got 4294967296"),
        ({"seed": "../0"}, "seed must be an integer from 0 to 2**32 - 1; got '../0'"),
    ],
)
def test_bad_arguments_are_a_value_error_of_one_line(arguments, message, cache, tmp_path):
    for function in (draw_scenes, partial(write_scenes, tmp_path / "scenes"), cached_scenes):
        with pytest.raises(ValueError) as caught:
            function(**arguments)
        assert str(caught.value) == message
    assert not list(tmp_path.iterdir())
