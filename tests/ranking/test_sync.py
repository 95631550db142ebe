"""Synchronisation: what is read, embedded, indexed, refused and reported; kills are in a script."""

import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmret_tf._files import locked_folder
from mmret_tf.data.loading import load
from mmret_tf.data.sources import FileSource
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking import EmbeddingStore, Run, ScannIndex, load_index
from mmret_tf.ranking.sync import sync_gallery

# A second apart, and long enough ago that they can be trusted.
TIMES = itertools.count(time.time_ns() - 10**13, 10**9)


class Colours(Encoder):
    """Embeds a picture of one colour as that colour, an item without one as (0, 0, 1).

    Attributes:
        embedded: Names of the files that were embedded, in order.
    """

    towers = {"image": None, "text": None}
    embedding_dim = 3

    def __init__(self, fingerprint="colours"):
        self._fingerprint = fingerprint
        self.embedded = []

    @property
    def fingerprint(self):
        return self._fingerprint

    def encode_items(self, sources):
        rows = []
        for images in sources["image"]:
            self.embedded += [Path(image.name).name for image in images]
            pixels = [Image.open(image.path).getpixel((0, 0)) for image in images[:1]]
            rows.append([*pixels, (0, 0, 1)][0])
        rows = np.array(rows, np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def paint(path, *colour):
    Image.new("RGB", (4, 4), colour).save(path)
    set_time(path, next(TIMES))


def set_time(path, changed):
    os.utime(path, ns=(changed, changed))


def write_captions(folder, **captions):
    """captions.jsonl with a caption and an attribute for each picture."""
    rows = [
        {"image": f"{name}.png", "caption": text, "attributes": {"length": len(text)}}
        for name, text in captions.items()
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """Four pictures of known colours."""
    (tmp_path / "pictures").mkdir()
    for name, colour in {"a": (9, 1, 1), "b": (1, 9, 1), "c": (1, 1, 9), "d": (9, 9, 1)}.items():
        paint(tmp_path / "pictures" / f"{name}.png", *colour)
    return tmp_path / "pictures"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def sync(run, folder, encoder=None, **options):
    """The numbers of added, changed, removed and unchanged items, and the names of those that were
    embedded; afterwards the gallery is as one that is made from nothing."""
    encoder = encoder or Colours()
    collection = load(folder, check=False)
    changes = sync_gallery(run, collection, lambda *_: encoder, **options)
    assert changes.embedded == len(encoder.embedded)
    check(run, collection.checked(), encoder.fingerprint)
    numbers = changes.added, changes.changed, changes.removed, changes.unchanged
    return *numbers, "".join(sorted(name[0] for name in encoder.embedded))


def check(run, collection, fingerprint):
    """Store and index agree with a store that is made from nothing."""
    right = EmbeddingStore.export(Colours(fingerprint), collection, run.folder / "right")
    store, index = EmbeddingStore.open(run.embeddings), load_index(run.index)
    assert store.items == right.items and store.contents == right.contents
    np.testing.assert_allclose(store.embeddings, right.embeddings, atol=0.01)  # perhaps int8
    held = dict(zip(index.ids, index.vectors, strict=True))
    assert held.keys() == set(right.ids)
    for key, row, item in zip(right.ids, right.embeddings, right.items, strict=True):
        np.testing.assert_allclose(held[key], row, atol=0.01)
        if item["attributes"]:
            assert key in index.search(row, len(index), where=item["attributes"])[0]
    assert not run.published.exists() and not run.unpublished.exists()


def test_a_gallery_follows_its_folder(run, folder):
    assert sync(run, folder) == (4, 0, 0, 0, "abcd")
    paint(folder / "e.png", 5, 5, 9)
    paint(folder / "b.png", 9, 1, 9)
    (folder / "c.png").unlink()
    assert sync(run, folder) == (1, 1, 1, 2, "be")


def test_nothing_is_read_nor_written_if_nothing_has_changed(run, folder, monkeypatch):
    sync(run, folder)
    times = [path.stat().st_mtime_ns for path in run.folder.rglob("*")]
    monkeypatch.setattr(FileSource, "read", lambda source: pytest.fail(source.name))
    changes = sync_gallery(run, load(folder, check=False), lambda *_: Colours())
    assert (changes.unchanged, changes.embedded) == (4, 0)
    assert times == [path.stat().st_mtime_ns for path in run.folder.rglob("*")]


def test_what_was_touched_or_moved_is_not_embedded_again(run, folder):
    sync(run, folder)
    set_time(folder / "a.png", next(TIMES))
    (folder / "b.png").rename(folder / "z.png")
    assert sync(run, folder) == (1, 0, 1, 3, "")


def test_size_and_time_choose_what_is_read_unless_all_is_to_be_verified(run, folder):
    sync(run, folder)
    before = (folder / "a.png").stat()
    paint(folder / "a.png", 8, 1, 1)
    set_time(folder / "a.png", before.st_mtime_ns)
    assert (folder / "a.png").stat().st_size == before.st_size
    changes = sync_gallery(run, load(folder, check=False), lambda *_: Colours())
    assert changes.changed == 0
    assert sync(run, folder, verify=True) == (0, 1, 0, 3, "a")


def test_a_file_that_has_just_changed_is_read_again(run, folder):
    (folder / "a.png").touch()
    sync(run, folder)
    now = (folder / "a.png").stat().st_mtime_ns
    paint(folder / "a.png", 8, 1, 1)
    set_time(folder / "a.png", now)  # within the same tick of the clock
    assert sync(run, folder) == (0, 1, 0, 3, "a")


def test_a_file_that_changes_after_it_was_read_is_read_again(run, folder):
    collection = load(folder, check=False)
    for [source] in collection.sources["image"]:
        assert len(source.identity) == 64
    paint(folder / "a.png", 8, 1, 1)  # long ago, by its time
    sync_gallery(run, collection, lambda *_: Colours())
    assert sync(run, folder) == (0, 1, 0, 3, "a")


@pytest.mark.filterwarnings("ignore:1 of 4 entries were set aside")  # d.png has no caption
def test_captions_and_attributes_are_followed(run, folder):
    write_captions(folder, a="red", b="green", c="blue")
    assert sync(run, folder) == (3, 0, 0, 0, "abc")
    write_captions(folder, a="red", b="grass", c="sky blue")
    assert sync(run, folder) == (0, 2, 0, 1, "bc")
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    rows[0]["attributes"] = {"length": 77}
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sync(run, folder) == (0, 1, 0, 2, "")


def test_a_damaged_picture_leaves_and_comes_back(run, folder):
    sync(run, folder)
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(b"no picture")
    changes = sync_gallery(run, load(folder, check=False), lambda *_: Colours())
    assert (changes.removed, changes.unchanged) == (1, 3)
    assert [Path(place).name for place, _ in changes.quarantined] == ["a.png"]
    (folder / "a.png").write_bytes(content)
    assert sync(run, folder) == (1, 0, 0, 3, "a")


def test_most_items_are_removed_only_if_that_is_allowed(run, folder):
    sync(run, folder)
    for name in "abc":
        (folder / f"{name}.png").unlink()
    with pytest.raises(ValueError, match="3 of the 4 items of .*--yes"):
        sync(run, folder)
    assert len(EmbeddingStore.open(run.embeddings)) == 4 and not run.unpublished.exists()
    assert sync(run, folder, may_remove=True) == (0, 0, 3, 1, "")


def test_half_of_the_items_may_go(run, folder):
    sync(run, folder)
    (folder / "a.png").unlink()
    (folder / "b.png").unlink()
    assert sync(run, folder) == (0, 0, 2, 2, "")


def test_another_model_embeds_everything(run, folder):
    sync(run, folder)
    assert sync(run, folder, Colours("other")) == (0, 0, 0, 4, "abcd")


def test_a_missing_or_damaged_index_is_built_again(run, folder):
    sync(run, folder)
    (run.index / "manifest.json").unlink()
    (run.index / "items.json").rename(run.folder / "elsewhere")
    for path in run.index.iterdir():
        path.unlink()
    assert sync(run, folder) == (0, 0, 0, 4, "")


def test_the_storage_type_and_its_loss_stay(run, folder):
    store = EmbeddingStore.export(Colours(), load(folder), run.embeddings, "int8")
    (folder / "a.png").unlink()
    assert sync(run, folder) == (0, 0, 1, 3, "")
    after = EmbeddingStore.open(run.embeddings)
    assert np.load(run.embeddings / "embeddings.npy").dtype == np.int8
    assert after.loss == pytest.approx(store.loss, abs=1e-6)
    np.testing.assert_allclose(after.embeddings, store.embeddings[1:], atol=1e-7)


def test_the_settings_of_the_index_stay(run, folder):
    store = EmbeddingStore.export(Colours(), load(folder), run.embeddings)
    ScannIndex.build(store.embeddings, store.ids, 0.5, k=3).save(run.index)
    paint(folder / "e.png", 5, 5, 9)
    assert sync(run, folder) == (1, 0, 0, 4, "e")
    manifest = json.loads((run.index / "manifest.json").read_text())
    assert (manifest["class"], manifest["recall_target"], manifest["k"]) == ("ScannIndex", 0.5, 3)


def test_members_of_a_changed_archive_are_known_by_content(run, folder, tmp_path):
    def pack(names):
        with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
            for name in names:
                archive.add(folder / f"{name}.png", f"{name}.png")

    class OfBytes(Colours):
        def encode_items(self, sources):
            self.embedded += [Path(image.name).name for (image,) in sources["image"]]
            return np.ones((len(sources["image"]), 3), np.float32)

    (tmp_path / "shards").mkdir()
    for names, expected in (("abc", "abc"), ("bcd", "d")):
        pack(names)
        encoder = OfBytes()
        sync_gallery(run, load(tmp_path / "shards", check=False), lambda *_: encoder)  # noqa: B023
        assert "".join(name[0] for name in encoder.embedded) == expected


def test_one_process_at_a_time(run, folder):
    sync(run, folder)
    (folder / "a.png").unlink()
    with locked_folder(run.unpublished), pytest.raises(ValueError, match="another process"):
        sync(run, folder)


def test_files_of_others_are_left_alone(run, folder):
    sync(run, folder)
    (run.index / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt"):
        sync(run, folder)


def test_a_kill_at_any_moment_leaves_a_whole_gallery_and_the_next_call_completes_it(tmp_path):
    script = Path(__file__).with_name("kill_syncs.py")
    command = [sys.executable, script, tmp_path / "killed", "--kills", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-2]) > 20  # steps
