"""Which images load_pairs puts aside, and what as_dataset makes of the others.

The layouts have tests of their own; here the captions lie in captions.jsonl or captions.csv.
"""

import types
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from conftest import draw, load_quietly, write, write_jsonl
from PIL import Image

from mmret_tf import layouts, loading
from mmret_tf.datasets import PairDataset, load_pairs


def test_scenes_are_drawn_on_demand(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    pairs = load_pairs("scenes", split="val", size=3, seed=1)
    assert len(pairs) == 3 and pairs.splits == ["dev"] * 3
    assert all(pairs.captions) and all(pairs.attributes)
    assert load_pairs("scenes", size=2).splits == ["train"] * 2
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "scenes" / "mine.png")
    write_jsonl(tmp_path / "scenes", {"image": "mine.png", "caption": "a folder of that name"})
    assert load_pairs("./scenes").ids == ["mine.png"]


def test_the_five_kinds_of_bad_input_are_put_aside_and_counted(tmp_path):
    write_jsonl(
        tmp_path,
        *({"image": f"{name}", "captions": ["a dog", "狗"]} for name in ("a.jpg", "b.png")),
        *({"image": name, "caption": "x"} for name in ("cut.jpg", "empty.png", "text.jpg")),
        {"image": "gone.jpg", "caption": "x"},
    )
    for name in ("a.jpg", "b.png", "cut.jpg", "alone.gif"):
        draw(tmp_path / name)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is no picture")
    expected = "5 of 7 entries were put aside .see .quarantined.: gone.jpg: .*; ...$"
    with pytest.warns(UserWarning, match=expected) as caught:
        pairs = load_pairs(tmp_path)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert pairs.ids == ["a.jpg", "b.png"]
    reasons = dict(pairs.quarantined)
    assert len(pairs.quarantined) == len(reasons) == 5
    assert reasons["gone.jpg"] == "the image does not exist (captions.jsonl line 6)"
    assert reasons["alone.gif"] == "image without a caption"
    assert "empty file" in reasons["empty.png"]
    assert "not an image" in reasons["text.jpg"]
    assert "truncated" in reasons["cut.jpg"]


def test_an_image_has_one_id_one_record_and_one_split(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name)
    write_jsonl(
        tmp_path,
        {"image": "a.png", "captions": ["x"], "id": "one", "split": "train"},
        {"image": "b.png", "captions": ["x"], "id": "one", "split": "train"},
        {"image": "a.png", "captions": ["x"], "id": "two", "split": "train"},
        {"image": "c.png", "caption": "x", "split": "train"},
        {"image": "c.png", "caption": "y", "split": "test"},
    )
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["one", "c.png"] and pairs.captions == [["x"], ["x"]]
    assert pairs.quarantined == [
        ("captions.jsonl line 5", "split 'test', but c.png is in 'train' already"),
        ("b.png", "duplicate id or image: 'one' (captions.jsonl line 2)"),
        ("a.png", "duplicate id or image: 'two' (captions.jsonl line 3)"),
    ]


def test_links_that_lead_outside_are_not_followed(tmp_path):
    root = tmp_path / "collection"
    draw(root / "a.png")
    draw(tmp_path / "outside" / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "inner.png").symlink_to(root / "b.png")
    draw(root / "b.png")
    names = ["a.png", "inner.png", "link.png", "folder/secret.png", "nul\0.png"]
    write_jsonl(root, *({"image": name, "caption": "x"} for name in names))
    pairs = load_quietly(root)
    assert pairs.ids == ["a.png", "inner.png"]
    aside = dict(pairs.quarantined)
    assert set(aside) == {"link.png", "folder/secret.png", "nul\0.png", "b.png"}
    assert aside["link.png"] == "leads outside the collection (captions.jsonl line 3)"
    assert aside["b.png"] == "image without a caption"

    (tmp_path / "captions.csv").write_text("image,caption\na.png,x\n")
    (root / "captions.jsonl").unlink()
    (root / "captions.csv").symlink_to(tmp_path / "captions.csv")
    with pytest.raises(ValueError, match="captions.csv is a link that leads outside"):
        load_pairs(root)


def test_large_files_and_folders_named_like_files_are_not_read(tmp_path, monkeypatch):
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    draw(tmp_path / "large.png")
    with open(tmp_path / "large.png", "ab") as file:
        file.truncate(2**20)
    monkeypatch.setattr(loading, "MAX_IMAGE_BYTES", 2**19)
    write(tmp_path / "captions.csv", "image,caption", "a.png,x", "b.png,x", "large.png,x")
    assert load_quietly(tmp_path).quarantined == [
        ("b.png", "the image does not exist (captions.csv line 3)"),
        ("large.png", "too large: more than 524288 bytes"),
    ]
    monkeypatch.setattr(layouts, "MAX_CAPTIONS_BYTES", 10)
    with pytest.raises(ValueError, match="captions.csv is no file, or has more than 10 bytes"):
        load_pairs(tmp_path)


def test_a_long_scan_shows_its_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "PROGRESS_FROM", 2)
    names = ["a.png", "b.png", "c.png"]
    for number, name in enumerate(names, 1):
        draw(tmp_path / name)
        write(tmp_path / "captions.csv", "image,caption", *(f"{name},x" for name in names[:number]))
        load_pairs(tmp_path)
        assert ("3/3" in capsys.readouterr().out) == (number == 3)


def make(folder, captions):
    """A collection in which image i is of grey level 10 * i."""
    files = [draw(folder / f"{i}.png", 10 * i) for i in range(len(captions))]
    return PairDataset(
        [file.name for file in files], files, captions, [{} for _ in files], ["train"] * len(files)
    )


def spell(texts):
    """A stand-in for TextPreprocessor: code points, so that a caption can be read back."""
    codes = tf.strings.unicode_decode(texts, "UTF-8")
    return tf.cast(codes.to_tensor(shape=[None, 12]), tf.int64)


MODEL = types.SimpleNamespace(image_size=8, text_preprocessor=spell)


def read_back(tokens):
    return ["".join(chr(code) for code in row if code) for row in np.asarray(tokens)]


def epoch(dataset):
    """All elements of one pass: (row, caption, image)."""
    return [
        (int(row), caption, image)
        for inputs, rows in dataset
        for row, caption, image in zip(
            rows, read_back(inputs["text"]), inputs["image"].numpy(), strict=True
        )
    ]


def test_captions_and_images_line_up():
    pairs = PairDataset(["x", "y"], ["x.png", "y.png"], [["a", "一"], ["b"]], [{}, {}], ["", "dev"])
    assert len(pairs) == 2
    assert pairs.all_captions() == ["a", "一", "b"]
    assert pairs.caption_to_image().tolist() == [0, 0, 1]
    assert pairs.subset([1, 0]).ids == ["y", "x"]
    assert pairs.subset(np.array([1])).captions == [["b"]]
    assert pairs.groups == [0, 1] and pairs.subset([1]).groups == [0]
    assert repr(pairs) == (
        "PairDataset(2 images, 3 captions, splits: no split (1), dev (1), 0 put aside)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["x", "x"]}, "ids must be unique; 'x' comes more than once"),
        ({"captions": [["a"], []]}, "every image must have a caption; 'y' has none"),
        ({"splits": ["dev"]}, "one item an image; got 2, 2, 2, 2, 1"),
        ({"groups": [0]}, "one item an image; got 2, 2, 2, 2, 2, 1"),
    ],
)
def test_a_pair_dataset_is_consistent(change, message):
    good = dict(ids=["x", "y"], image_paths=["", ""], captions=[["a"], ["b"]])
    with pytest.raises(ValueError, match=message):
        PairDataset(**good | dict(attributes=[{}, {}], splits=["", ""]) | change)


def test_for_evaluation_every_pair_comes_in_order(tmp_path):
    pairs = make(tmp_path, [["zero", "零"], ["one"], ["two", "二", "deux"]])
    dataset = pairs.as_dataset(MODEL, batch_size=4)
    (inputs, rows), (last, _) = dataset
    assert inputs["image"].shape == (4, 8, 8, 3) and inputs["image"].dtype == tf.uint8
    assert inputs["text"].shape == (4, 12) and inputs["text"].dtype == tf.int64
    assert rows.dtype == tf.int64 and last["image"].shape[0] == 2
    assert dataset.cardinality() == 2
    seen = epoch(dataset)
    assert [caption for _, caption, _ in seen] == pairs.all_captions()
    assert [row for row, _, _ in seen] == pairs.caption_to_image().tolist()
    assert all(np.all(image == 10 * row) for row, _, image in seen)


def test_in_training_each_epoch_has_each_image_once_with_one_of_its_captions(tmp_path):
    captions = [[f"{i}{letter}" for letter in "abcde"[: 1 + i % 5]] for i in range(10)]
    pairs = make(tmp_path, captions)
    features = np.zeros((10, 1))  # nothing to decode, so many epochs take no time
    dataset = pairs.as_dataset(MODEL, batch_size=5, training=True, features=features)
    assert dataset.cardinality() == 2
    epochs = [[element[:2] for element in epoch(dataset)] for _ in range(40)]
    for seen in epochs:
        assert sorted(row for row, _ in seen) == list(range(10))
        assert all(caption in captions[row] for row, caption in seen)
    assert {caption for seen in epochs for _, caption in seen} == set(pairs.all_captions())
    assert [row for row, _ in epochs[0]] != [row for row, _ in epochs[1]]
    assert dict(epochs[0]) != dict(epochs[1])


def test_the_seed_decides_order_and_captions_in_all_epochs(tmp_path):
    pairs = make(tmp_path, [[f"{i}{letter}" for letter in "abc"] for i in range(12)])

    def epochs(seed):
        dataset = pairs.as_dataset(
            MODEL, batch_size=4, training=True, seed=seed, features=np.zeros((12, 1))
        )
        return [[element[:2] for element in epoch(dataset)] for _ in range(3)]

    assert epochs(3) == epochs(3)
    assert epochs(3)[0] != epochs(4)[0]


def test_the_seed_decides_crops_and_flips_however_many_threads_decode(tmp_path):
    pairs = make(tmp_path, [["x", "y"]] * 12)
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for row, path in enumerate(pairs.image_paths):  # red tells the row, the rest crop and flip
        noise[:, :, 0] = 10 * row
        Image.fromarray(noise).save(path)

    def epochs(number, **options):
        dataset = pairs.as_dataset(MODEL, batch_size=4, training=True, seed=3, **options)
        seen = [epoch(dataset) for _ in range(number)]
        assert all(np.all(image[:, :, 0] == 10 * row) for each in seen for row, _, image in each)
        return [[(row, caption, image.tobytes()) for row, caption, image in each] for each in seen]

    first, second = epochs(2)
    assert len({image for *_, image in first + second}) == 24  # a new crop in each epoch
    assert epochs(1) == [first]
    assert sorted(epochs(1, deterministic=False)[0]) == sorted(first)
    assert epochs(1, min_crop=0.5)[0] != first


def test_a_picture_is_mirrored_only_if_its_caption_names_no_side(tmp_path):
    free = ["a red ball", "一个球", "an upright"]
    bound = ["to the LEFT", "right-handed", "up\nthe right", "猫在左边", "狗在右侧"]
    pairs = make(tmp_path, [[caption] for caption in free + bound for _ in range(15)])
    half = np.zeros((20, 20, 3), np.uint8)
    half[:, 10:] = 255  # dark on the left, bright on the right
    for path in pairs.image_paths:
        Image.fromarray(half).save(path)
    mirrored = Counter(
        caption
        for _, caption, image in epoch(pairs.as_dataset(MODEL, batch_size=120, training=True))
        if image[0, 0, 0] > image[0, -1, 0]
    )
    assert set(mirrored) == set(free)
    assert all(0 < count < 15 for count in mirrored.values())


@pytest.mark.parametrize("training", [False, True])
def test_images_of_one_item_have_one_target(training):
    pairs = PairDataset(
        ["x#0", "y", "x#1", "z"], [""] * 4, [["x"], ["y"], ["x"], ["z"]], [{}] * 4, [""] * 4
    )
    pairs.groups = [7, 3, 7, 5]
    assert pairs.first_rows() == [0, 1, 3]
    part = pairs.subset([3, 2, 0])
    assert part.groups == [0, 1, 1] and part.subset([1, 2]).groups == [0, 0]
    features = np.arange(4.0)[:, None]
    dataset = pairs.as_dataset(MODEL, 2, training, features=features)
    assert all(groups.dtype == tf.int64 for _, groups in dataset)
    seen = [(group, caption, float(image[0])) for group, caption, image in epoch(dataset)]
    assert sorted(seen) == [(3, "y", 1), (5, "z", 3), (7, "x", 0), (7, "x", 2)]


def test_only_training_drops_a_part_of_a_batch_and_never_the_only_one(tmp_path):
    pairs, features = make(tmp_path, [["x"]] * 5), np.zeros((5, 1))
    sizes = {
        (training, size): [
            len(rows) for _, rows in pairs.as_dataset(MODEL, size, training, features=features)
        ]
        for training in (False, True)
        for size in (2, 8)
    }
    assert sizes == {
        (False, 2): [2, 2, 1],
        (False, 8): [5],
        (True, 2): [2, 2],
        (True, 8): [5],
    }


@pytest.mark.parametrize("training", [False, True])
def test_features_stand_for_the_images(training, tmp_path):
    pairs = make(tmp_path, [["a", "b"], ["c"], ["d"]])
    for path in pairs.image_paths:
        path.unlink()  # nothing is decoded
    np.save(tmp_path / "features.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    dataset = pairs.as_dataset(MODEL, batch_size=2, training=training, features=features)
    assert dataset.element_spec[0]["image"].shape[1:] == (2,)
    seen = epoch(dataset)
    assert len(seen) == (2 if training else 4)
    for row, caption, image in seen:
        assert image.dtype == np.float32 and image.tolist() == [2 * row, 2 * row + 1]
        assert caption in pairs.captions[row]


def test_an_image_may_come_several_times_in_a_row_with_other_captions(tmp_path):
    pairs = make(tmp_path, [["a", "b", "c"], ["d"], ["e", "f", "g", "h", "i"], ["j", "k"]])
    dataset = pairs.as_dataset(
        MODEL, batch_size=4, training=True, features=np.zeros((4, 1)), captions_per_image=2
    )
    assert dataset.cardinality() == 2
    drawn = set()
    for _ in range(40):
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


def test_training_draws_views_and_no_mirrored_one_for_a_caption_that_names_a_side(tmp_path):
    pairs = make(tmp_path, [["a ball"], ["a ball on the left"]])
    features = np.arange(8.0).reshape(2, 4, 1)  # row 0 has the views 0 to 3, row 1 those 4 to 7
    dataset = pairs.as_dataset(MODEL, 2, training=True, features=features)
    drawn = {(row, float(image[0])) for _ in range(60) for row, _, image in epoch(dataset)}
    assert drawn == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 6)}
    plain = epoch(pairs.as_dataset(MODEL, 2, features=features))
    assert [float(image[0]) for *_, image in plain] == [0, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": types.SimpleNamespace(image_size=8)}, "the model has no text_preprocessor"),
        ({"batch_size": 0}, "no batches of 0 can be made of 2 images"),
        ({"min_crop": 0.0}, "min_crop must be above 0 and at most 1; got 0.0"),
        ({"min_crop": 1.5}, "min_crop must be above 0 and at most 1; got 1.5"),
        ({"captions_per_image": 0}, "captions_per_image must be at least 1; got 0"),
        (
            {"features": np.zeros((3, 4))},
            r"shape \[2, width\], a row an image, or \[2, views, width\]; got \(3, 4\)",
        ),
        ({"features": np.zeros(2)}, r"got \(2,\)"),
    ],
)
def test_as_dataset_says_what_is_wrong(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, [["x"], ["y"]]).as_dataset(**{"model": MODEL} | options)
