"""Scenes as files: whole folders or none, the same bytes each time, and the cache."""

import filecmp
import itertools
import json
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data.drawn.files import DRAWING_VERSION, KINDS, cached_drawn, write_drawn
from mmret_tf.data.drawn.scenes import Scene, draw_scenes
from mmret_tf.data.drawn.worlds import draw_worlds


def test_the_folder_holds_what_was_drawn(tmp_path):
    folder = write_drawn("scenes", tmp_path / "new" / "scenes", "dev", size=12, seed=3)
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


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_bytes(kind, tmp_path):
    first, second = (write_drawn(kind, tmp_path / name, "test", 20, seed=4) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert filecmp.cmpfiles(first, second, names, shallow=False) == (names, [], [])


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(list(write_drawn("scenes", tmp_path / "empty", size=2).iterdir())) == 3

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine", encoding="utf-8")
    for name, problem in [("full", "holds files already"), ("full/thesis.txt", "is a file")]:
        with pytest.raises(ValueError, match=f"must be new or empty; .*{name} {problem}, choose"):
            write_drawn("scenes", tmp_path / name, size=2)
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


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def stop():
        assert len(list(tmp_path.iterdir())) == 1  # a temporary folder
        assert not (tmp_path / "scenes").exists()
        raise KeyboardInterrupt

    interrupt_drawing(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        write_drawn("scenes", tmp_path / "scenes", size=5)
    assert not list(tmp_path.iterdir())


def test_items_may_have_several_files_or_none(tmp_path):
    folder = write_drawn("worlds", tmp_path / "worlds", "test")
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    named = []
    for number, (line, item) in enumerate(
        zip(map(json.loads, lines), draw_worlds("test"), strict=True)
    ):
        names = line.get("images", [line["image"]] if "image" in line else [])
        ends = ["", "-1", "-2", "-3"][: len(item.pictures)]
        assert names == [f"{number:04}{end}.png" for end in ends]
        assert ("images" in line) == (len(names) > 1)
        assert line["attributes"] == item.attributes
        for name, picture in zip(names, item.draw(), strict=True):
            with Image.open(folder / name) as file:
                assert (file.format, file.size) == ("PNG", (96, 96))
                assert np.array_equal(np.asarray(file), np.asarray(picture))
        named += names
    assert sorted([*named, "captions.jsonl"]) == sorted(path.name for path in folder.iterdir())


# --- cache ---------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path / "datasets" / "mmret_scenes"


def test_cached_scenes_are_drawn_once(cache, monkeypatch):
    folder = cached_drawn("scenes", "dev", size=3, seed=8)
    assert folder == cache / f"v{DRAWING_VERSION}-dev-3-8"
    assert (folder / "captions.jsonl").read_text(encoding="utf-8").count("\n") == 3
    monkeypatch.delattr(Scene, "draw")
    assert cached_drawn("scenes", "dev", size=3, seed=8) == folder
    with pytest.raises(AttributeError, match="draw"):
        cached_drawn("scenes", "dev", size=3, seed=9)


def test_the_cache_is_in_the_keras_home(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # the same on Windows
    name = f"v{DRAWING_VERSION}-train-1-0"
    expected = tmp_path / ".keras" / "datasets" / "mmret_scenes" / name
    assert cached_drawn("scenes", "train", size=1, seed=0) == expected


def test_the_slower_of_two_processes_uses_the_folder_of_the_faster(cache, monkeypatch):
    faster = []
    interrupt_drawing(monkeypatch, lambda: faster.append(cached_drawn("scenes", "dev", 5)))
    slower = cached_drawn("scenes", "dev", 5)
    assert faster == [slower]
    assert len(list(slower.iterdir())) == 6
    assert list(cache.iterdir()) == [slower]  # the slower one's own drawing is gone


def test_many_at_once_agree(cache):
    barrier, folders = threading.Barrier(6), []

    def ask():
        barrier.wait()
        folders.append(cached_drawn("scenes", "test", 10))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [folders[0]] * 6
    assert len(list(folders[0].iterdir())) == 11
    assert list(cache.iterdir()) == [folders[0]]


def test_other_files_in_the_place_of_the_cache_are_not_overwritten(cache):
    folder = cached_drawn("scenes", "dev", 2)
    (folder / "captions.jsonl").unlink()
    with pytest.raises(ValueError, match="holds files already"):
        cached_drawn("scenes", "dev", 2)


@pytest.mark.parametrize("arguments", [{"split": "../dev"}, {"size": 0}, {"seed": "../0"}])
def test_bad_arguments_write_nothing(arguments, cache, tmp_path):
    for function in (
        partial(write_drawn, "scenes", tmp_path / "scenes"),
        partial(cached_drawn, "scenes"),
    ):
        with pytest.raises(ValueError, match="must be"):
            function(**arguments)
    assert not list(tmp_path.iterdir())
