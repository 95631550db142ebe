"""A text file beside each picture, in any subfolder."""

from conftest import draw, load_quietly, write

from mmret_tf.data.readers.reader import read_layout


def test_pairs_of_image_and_text_in_subfolders(tmp_path):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "one dog", "", "一只狗")
    draw(tmp_path / "more" / "B.PNG")
    write(tmp_path / "more" / "B.txt", "two cats")
    draw(tmp_path / "alone.jpg")
    write(tmp_path / "notes.txt", "hello")
    pairs = load_quietly(tmp_path)
    assert pairs.ids == ["a.jpg", "more/B.PNG"]
    assert pairs.captions == [["one dog", "一只狗"], ["two cats"]]
    assert pairs.quarantined == [
        ("notes.txt", "no image of this name"),
        ("alone.jpg", "image without a caption"),
    ]


def test_one_text_may_describe_several_pictures(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        draw(tmp_path / name)
    write(tmp_path / "a.txt", "a dog")
    write(tmp_path / "b.txt", " ")
    records = read_layout(tmp_path).records
    assert [record.id for record in records] == ["a.jpg", "a.png"]
    assert all(record.sources["text"] == ["a dog"] for record in records)


def test_jfif_is_a_suffix_of_jpeg(tmp_path):
    draw(tmp_path / "a.jpg").rename(tmp_path / "a.jfif")
    write(tmp_path / "a.txt", "a dog")
    assert load_quietly(tmp_path).ids == ["a.jfif"]
