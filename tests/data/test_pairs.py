"""Pairs: consistency, groups, and the batches that go through the towers of a model."""

import types
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from conftest import draw, make_backbone
from PIL import Image

from mmret_tf.data import Modality, Pairs, joint_dataset
from mmret_tf.data.decoders.pictures import encode_png
from mmret_tf.data.items import source_ids
from mmret_tf.data.loading import load, load_pairs
from mmret_tf.data.modalities import MODALITIES
from mmret_tf.data.sources import InlineSource
from mmret_tf.models import image_tower


class Spell:
    """A text tower that is not trained: code points, so that a caption can be read back."""

    def preprocess(self, sources):
        codes = tf.strings.unicode_decode(sources, "UTF-8")
        return tf.cast(codes.to_tensor(shape=[None, 12]), tf.int64)

    def augment(self, sources, seeds, mirror):
        return self.preprocess(sources)


class Length:
    """A tower of any modality: the length of the content, the seeds, and what is mirrored."""

    def preprocess(self, sources):
        return tf.strings.length(sources)

    def augment(self, sources, seeds, mirror):
        columns = [tf.cast(tf.strings.length(sources), tf.int64), *tf.unstack(seeds, axis=1)]
        return tf.stack([*columns, tf.cast(mirror, tf.int64)], axis=1)


def model_of(**towers):
    return types.SimpleNamespace(towers=towers)


LIGHT = model_of(image=Length(), text=Spell())


@pytest.fixture(autouse=True)
def global_seed():
    """TensorFlow combines it with the seed of a dataset; other tests may have set another one."""
    tf.random.set_seed(0)


@pytest.fixture(scope="module")
def model():
    """A model with the real preprocessing of pictures of 8 pixels."""
    return model_of(image=image_tower(make_backbone(), image_size=8), text=Spell())


@pytest.fixture(scope="module")
def wide_crops():
    """A model that crops down to half of a picture."""
    return model_of(image=image_tower(make_backbone(), image_size=8, min_crop=0.5), text=Spell())


def make(captions, **more):
    """Pairs in which the picture of row i is i + 1 bytes long, for the tower `Length`."""
    images = [[InlineSource(b"x" * (row + 1))] for row in range(len(captions))]
    ids = [f"{row}" for row in range(len(captions))]
    return Pairs(ids, {"image": images, "text": captions}, **more)


def with_pictures(captions, pictures):
    images = [[InlineSource(encode_png(picture))] for picture in pictures]
    return Pairs([f"{row}" for row in range(len(captions))], {"image": images, "text": captions})


def read_back(tokens):
    return ["".join(chr(code) for code in row if code) for row in np.asarray(tokens)]


def epoch(dataset):
    """All rows of one pass: (group, caption, image)."""
    return [
        (int(group), caption, image)
        for inputs, groups in dataset
        for group, caption, image in zip(
            groups, read_back(inputs["text"]), inputs["image"].numpy(), strict=True
        )
    ]


def test_captions_and_images_line_up():
    sources = {"image": [["x.png"], ["y.png"]], "text": [["a", "一"], ["b"]]}
    pairs = Pairs(["x", "y"], sources, splits=["", "dev"])
    assert len(pairs) == 2 and pairs.modalities == ("image", "text")
    assert pairs.all_captions() == ["a", "一", "b"]
    assert pairs.caption_to_image().tolist() == [0, 0, 1]
    assert pairs.caption_to_image().dtype == np.int64
    assert [path.name for path in pairs.image_paths] == ["x.png", "y.png"]
    assert [source.name for source in pairs.first_sources] == ["x.png", "y.png"]
    assert [source.record for source in pairs.second_sources] == ["a", "一", "b"]
    assert pairs.subset([1, 0]).ids == ["y", "x"] and pairs.split("val").ids == ["y"]
    assert pairs.subset(np.array([1])).captions == [["b"]]
    assert isinstance(pairs.subset([1]), Pairs)
    assert pairs.groups == [0, 1] and pairs.subset([1]).groups == [0]
    assert (
        repr(pairs) == "Pairs(2 items, 2 image, 3 text, splits: no split (1), dev (1), 0 set aside)"
    )


def test_names_of_several_sources():
    assert source_ids("a", 1) == ["a"]
    assert source_ids("a", 3) == ["a#0", "a#1", "a#2"] and source_ids("a", 0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["x", "x"]}, "ids must be unique; 'x' occurs more than once"),
        ({"text": [["a"], []]}, "one image and at least one text; 'y' has 1 and 0"),
        ({"image": [["a.png", "b.png"], ["c.png"]]}, "every row must have one image .* 'x' has 2"),
        ({"image": [["a.png"], []]}, "'y' has 0 and 1"),
        ({"splits": ["dev"]}, r"2 ids, and every list must have as many; got {'splits': 1}"),
        ({"groups": [0]}, "pairs have two modalities, and one group a row"),
        ({"text": None}, "pairs have two modalities, and one group a row"),
    ],
)
def test_pairs_are_consistent(change, message):
    given = {"ids": ["x", "y"], "image": [["a.png"], ["b.png"]], "text": [["a"], ["b"]]} | change
    sources = {name: given[name] for name in ("image", "text") if given[name] is not None}
    more = {name: given[name] for name in ("splits", "groups") if name in given}
    with pytest.raises(ValueError, match=message):
        Pairs(given["ids"], sources, **more)


def test_for_evaluation_every_pair_comes_in_order(model, tmp_path):
    captions = [["zero", "零"], ["one"], ["two", "二", "deux"]]
    files = [draw(tmp_path / f"{row}.png", 10 * row) for row in range(3)]
    pairs = Pairs(["0", "1", "2"], {"image": [[file] for file in files], "text": captions})
    dataset = pairs.as_dataset(model, batch_size=4)
    (inputs, rows), (last, _) = dataset
    assert inputs["image"].shape == (4, 8, 8, 3) and inputs["image"].dtype == tf.uint8
    assert inputs["text"].shape == (4, 12) and inputs["text"].dtype == tf.int64
    assert rows.dtype == tf.int64 and last["image"].shape[0] == 2
    assert dataset.cardinality() == 2
    seen = epoch(dataset)
    assert [caption for _, caption, _ in seen] == pairs.all_captions()
    assert [row for row, _, _ in seen] == pairs.caption_to_image().tolist()
    assert all(np.all(image == 10 * row) for row, _, image in seen)


def test_in_training_each_epoch_has_each_row_once_with_one_of_its_captions():
    captions = [[f"{i}{letter}" for letter in "abcde"[: 1 + i % 5]] for i in range(10)]
    pairs = make(captions)
    dataset = pairs.as_dataset(LIGHT, batch_size=5, training=True)
    assert dataset.cardinality() == 2
    epochs = [epoch(dataset) for _ in range(40)]
    for seen in epochs:
        assert sorted(row for row, *_ in seen) == list(range(10))
        assert all(caption in captions[row] for row, caption, _ in seen)
        assert all(image[0] == row + 1 for row, _, image in seen)
    assert {caption for seen in epochs for _, caption, _ in seen} == set(pairs.all_captions())
    first, second = ([each[:2] for each in seen] for seen in epochs[:2])
    assert [row for row, _ in first] != [row for row, _ in second]
    assert dict(first) != dict(second)


def test_an_order_of_ones_own_is_asked_for_in_each_epoch():
    pairs, orders = make([["a"], ["b"], ["c"]]), iter([[2, 0, 1], [0, 2, 1]])
    dataset = pairs.as_dataset(
        LIGHT, 2, True, captions_per_image=2, order=lambda: np.array(next(orders))
    )
    assert len(dataset) == 3  # of two rows; each row comes twice
    assert [group for group, *_ in epoch(dataset)] == [2, 2, 0, 0, 1, 1]
    assert [group for group, *_ in epoch(dataset)] == [0, 0, 2, 2, 1, 1]


def test_the_seed_decides_order_captions_and_seeds_in_all_epochs():
    pairs = make([[f"{i}{letter}" for letter in "abc"] for i in range(12)])

    def epochs(seed):
        dataset = pairs.as_dataset(LIGHT, batch_size=4, training=True, seed=seed)
        return [[(*each[:2], *each[2]) for each in epoch(dataset)] for _ in range(3)]

    first = epochs(3)
    assert epochs(3) == first and epochs(4)[0] != first[0]
    seeds = {row[3:5] for seen in first for row in seen}
    assert len(seeds) == 36  # each pair has its own


def test_the_seed_decides_crops_and_mirroring_however_many_threads_decode(model, wide_crops):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    pictures = []
    for row in range(12):  # red tells the row, the rest shows crop and mirroring
        noise[:, :, 0] = 10 * row
        pictures.append(noise.copy())
    pairs = with_pictures([["x", "y"]] * 12, pictures)

    def epochs(number, model=model):
        dataset = pairs.as_dataset(model, batch_size=4, training=True, seed=3)
        seen = [epoch(dataset) for _ in range(number)]
        assert all(np.all(image[:, :, 0] == 10 * row) for each in seen for row, _, image in each)
        return [[(row, caption, image.tobytes()) for row, caption, image in each] for each in seen]

    first, second = epochs(2)
    assert len({image for *_, image in first + second}) == 24  # a new crop in each epoch
    assert epochs(1) == [first]
    [others] = epochs(1, wide_crops)
    assert [row[:2] for row in others] == [row[:2] for row in first] and others != first


def test_a_picture_is_mirrored_only_if_its_caption_names_no_side(model):
    free = ["a red ball", "一个球", "an upright"]
    bound = ["to the LEFT", "right-handed", "up\nthe right", "猫在左边", "狗在右侧"]
    captions = [[caption] for caption in free + bound for _ in range(15)]
    half = np.zeros((20, 20, 3), np.uint8)
    half[:, 10:] = 255  # dark on the left, bright on the right
    pairs = with_pictures(captions, [half] * len(captions))
    mirrored = Counter(
        caption
        for _, caption, image in epoch(pairs.as_dataset(model, batch_size=120, training=True))
        if image[0, 0, 0] > image[0, -1, 0]
    )
    assert set(mirrored) == set(free)
    assert all(0 < count < 15 for count in mirrored.values())


def test_each_draw_of_captions_decides_anew_whether_to_mirror():
    pairs = make([["a ball", "the left"]])
    dataset = pairs.as_dataset(LIGHT, training=True, captions_per_image=40)
    drawn = Counter((caption, int(image[3])) for _, caption, image in epoch(dataset))
    assert set(drawn) == {("a ball", 0), ("a ball", 1), ("the left", 0)}


@pytest.mark.parametrize("training", [False, True])
def test_rows_of_one_item_have_one_target(training):
    pairs = make([["x"], ["y"], ["x"], ["z"]], groups=[7, 3, 7, 5])
    assert pairs.groups == [0, 1, 0, 2] and pairs.first_rows() == [0, 1, 3]
    part = pairs.subset([3, 2, 0])
    assert part.groups == [0, 1, 1] and part.subset([1, 2]).groups == [0, 0]
    dataset = pairs.as_dataset(LIGHT, 2, training)
    assert all(groups.dtype == tf.int64 for _, groups in dataset)
    seen = [(group, caption, int(np.ravel(image)[0])) for group, caption, image in epoch(dataset)]
    assert sorted(seen) == [(0, "x", 1), (0, "x", 3), (1, "y", 2), (2, "z", 4)]


def test_only_training_drops_a_part_of_a_batch_and_never_the_only_one():
    pairs = make([["x"]] * 5)
    sizes = {
        (training, size): [len(rows) for _, rows in pairs.as_dataset(LIGHT, size, training)]
        for training in (False, True)
        for size in (2, 8)
    }
    assert sizes == {
        (False, 2): [2, 2, 1],
        (False, 8): [5],
        (True, 2): [2, 2],
        (True, 8): [5],
    }


def test_parts_of_several_modalities_make_each_step_together():
    short = Pairs(["0", "1"], {"audio": [[b"1"], [b"22"]], "text": [["high"], ["low"]]})
    model = model_of(image=Length(), audio=Length(), text=Spell())
    parts = [make([["a"], ["b"], ["c"], ["d"], ["e"]]), short]
    batches = joint_dataset(parts, model, 2, seed=3)
    assert len(batches) == 2  # the longer part once, without its incomplete batch
    steps = list(batches)
    names = [["image", "text"], ["audio", "text"]]
    for inputs, groups in steps:
        assert [list(each) for each in inputs] == names
        assert [len(each) for each in groups] == [2, 2]
    lengths = [sorted(x[1]["audio"][:, 0].numpy().tolist()) for x, _ in steps]
    assert lengths == [[1, 2], [1, 2]]  # the shorter part begins again
    seen = [read_back(x[0]["text"]) for x, _ in steps]
    assert len({caption for each in seen for caption in each}) == 4
    orders = [[x[0]["image"][:, 0].numpy().tolist() for x, _ in batches] for _ in range(4)]
    assert any(order != orders[0] for order in orders)  # each epoch has a new order

    alone = joint_dataset(parts[:1], model, 2, seed=3)
    assert isinstance(alone.element_spec[0], dict) and len(alone) == 2
    with pytest.raises(ValueError, match="no pairs of modalities"):
        joint_dataset([], model)


def test_a_row_may_come_several_times_in_succession_with_other_captions():
    pairs = make([["a", "b", "c"], ["d"], ["e", "f", "g", "h", "i"], ["j", "k"]])
    dataset = pairs.as_dataset(LIGHT, batch_size=4, training=True, captions_per_image=2)
    assert dataset.cardinality() == 2
    drawn = set()
    for _ in range(20):
        seen = epoch(dataset)
        rows, captions = [row for row, *_ in seen], [caption for _, caption, _ in seen]
        assert rows[::2] == rows[1::2] and sorted(rows[::2]) == [0, 1, 2, 3]
        assert all(caption in pairs.captions[row] for row, caption, _ in seen)
        assert all(
            first != second or row == 1  # which has one caption
            for row, first, second in zip(rows[::2], captions[::2], captions[1::2], strict=True)
        )
        drawn |= set(captions)
    assert drawn == set(pairs.all_captions())


def test_any_two_modalities_go_through_their_towers(monkeypatch, tmp_path):
    thumbnail = Image.new("RGB", (8, 8))
    sound = Modality("sound", (".snd",), lambda contents: None, lambda *_: thumbnail)
    monkeypatch.setitem(MODALITIES, "sound", sound)
    for row, content in enumerate(["a", "bb", "ccc"]):
        (tmp_path / f"{row}.snd").write_text(content)
    sources = {
        "sound": [[tmp_path / "0.snd"], [tmp_path / "2.snd"]],
        "image": [[b"1234"], [b"12345", b"123456"]],
    }
    pairs = Pairs(["a", "b"], sources)
    model = model_of(image=Length(), text=Spell(), sound=Length())
    [(inputs, groups)] = pairs.as_dataset(model)
    assert {name: each.numpy().tolist() for name, each in inputs.items()} == {
        "sound": [1, 3, 3],
        "image": [4, 5, 6],
    }
    assert groups.numpy().tolist() == [0, 1, 1]
    [(inputs, _)] = pairs.as_dataset(model, training=True, captions_per_image=20)
    # The towers of a pair get the same numbers and the same decision.
    assert np.array_equal(inputs["sound"][:, 1:], inputs["image"][:, 1:])
    assert set(inputs["sound"][:, 3].numpy()) == {0, 1}


def test_a_file_that_vanishes_is_an_error_that_names_it(tmp_path):
    pairs = Pairs(["a"], {"image": [[tmp_path / "gone.png"]], "text": [["x"]]})
    with pytest.raises(tf.errors.OpError, match="gone.png: No such file"):
        list(pairs.as_dataset(LIGHT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": model_of(image=Length())}, "the model has no tower for text"),
        ({"model": model_of(text=Spell())}, "the model has no tower for image"),
        ({"batch_size": 0}, "no batches of 0 can be made of 2 rows"),
        ({"captions_per_image": 0}, "captions_per_image must be at least 1; got 0"),
    ],
)
def test_as_dataset_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        make([["x"], ["y"]]).as_dataset(**{"model": LIGHT} | options)


@pytest.fixture
def damaged(tmp_path):
    """Six pictures with a caption each, all for training; 1 and 2 are cut off, 4 is a text."""
    lines = []
    for number in range(6):
        content = encode_png(np.full((8, 8, 3), 40 * number, np.uint8))
        content = content[:40] if number in (1, 2) else content
        (tmp_path / f"{number}.png").write_bytes(b"text" if number == 4 else content)
        lines.append(f"{number}.png,picture {number},train")
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *lines]))
    return tmp_path


def test_without_the_check_everything_is_loaded_and_can_be_checked_later(damaged):
    unchecked = load(damaged, check=False)
    assert not unchecked.is_checked and len(unchecked) == 6 and unchecked.quarantined == []
    with pytest.warns(UserWarning, match="3 of 6 entries"):
        at_once = load(damaged)
    later = unchecked.checked()
    assert at_once.is_checked and later.is_checked and not unchecked.pairs().is_checked
    assert (
        later.ids == at_once.ids == unchecked.pairs().checked().ids == ["0.png", "3.png", "5.png"]
    )
    named = [(str(damaged / place), reason) for place, reason in at_once.quarantined]
    assert later.quarantined == named
    assert unchecked.checked([1, 3]).ids == [f"{number}.png" for number in (0, 2, 3, 4, 5)]


def test_training_sets_a_damaged_picture_aside_once_and_takes_the_next_row(damaged, model):
    pairs = load_pairs(damaged, check=False)
    batches = pairs.as_dataset(model, batch_size=3, training=True)
    with pytest.warns(UserWarning, match="set aside: .*png") as warned:
        epochs = [[groups.numpy().tolist() for _, groups in batches] for _ in range(4)]
    for epoch in epochs:  # 1 and 2 become 3, and 4 becomes 5
        assert sorted(sum(epoch, [])) == [0, 3, 3, 3, 5, 5] and len(epoch) == 2
    assert len(warned) == 3
    assert sorted(place for place, _ in pairs.quarantined) == [
        str(damaged / f"{number}.png") for number in (1, 2, 4)
    ]
    inputs, groups = next(iter(batches.rebatch(6)))
    for picture, group in zip(inputs["image"].numpy(), groups.numpy(), strict=True):
        assert np.allclose(picture, 40 * group, atol=1)


def test_unchecked_pairs_without_a_whole_picture_say_so(damaged, model):
    for file in damaged.glob("*.png"):
        file.write_bytes(b"no picture")
    batches = load_pairs(damaged, check=False).as_dataset(model, batch_size=3, training=True)
    with pytest.warns(UserWarning), pytest.raises(tf.errors.OpError, match="none of the 6 rows"):
        next(iter(batches))


def test_without_rows_there_are_no_batches():
    with pytest.raises(ValueError, match="no batches of 64 can be made of 0 rows"):
        make([["x"]]).subset([]).as_dataset(LIGHT)
