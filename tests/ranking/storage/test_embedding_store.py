"""What EmbeddingStore promises: whole files, resumed exports, and folders of others left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import draw

from mmret_tf import _files
from mmret_tf._files import file_sha256
from mmret_tf.data.collection import Collection
from mmret_tf.data.sources import InlineSource
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.storage import chunks, embedding_store
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.similarity.vectors import row_cosines

N = 10


class FakeEncoder(Encoder):
    """Embeds an item as (sum of its images' numbers, number of its texts), times a weight.

    Attributes:
        encoded: Numbers of the images that were embedded, in order.
    """

    towers = {"image": None, "text": None}
    embedding_dim = 2

    def __init__(self, weight=1.0, fails_at=None, broken=()):
        self.weight = weight
        self.fails_at = fails_at
        self.broken = broken
        self.encoded = []

    @property
    def fingerprint(self):
        return f"weight {self.weight}"

    def encode_items(self, sources):
        rows = []
        images = [[int(image.read()) for image in item] for item in sources["image"]]
        if any(self.fails_at in item for item in images):
            raise KeyboardInterrupt
        for numbers, texts in zip(images, sources["text"], strict=True):
            self.encoded += numbers
            value = np.nan if set(numbers) & set(self.broken) else sum(numbers)
            rows.append([value * self.weight, len(texts) * self.weight])
        return np.array(rows, np.float32)


def picture(number):
    return InlineSource(str(number).encode(), f"{number}.png")


def make_collection(n=N, captions=None, prefix=""):
    """Items of one image and two texts."""
    images = [[picture(number)] for number in range(n)]
    captions = captions or [[f"number {number}", f"数字 {number}"] for number in range(n)]
    attributes = [{"n": number} for number in range(n)]
    ids = [f"{prefix}{number:03}" for number in range(n)]
    return Collection(ids, {"image": images, "text": captions}, attributes)


def make_items(second=2, text="x"):
    """An item of two images and a text, one of an image alone, and one of text alone."""
    images = [[picture(1), picture(second)], [picture(3)], []]
    return Collection(["a", "b", "c"], {"image": images, "text": [[text], [], ["y", "z"]]})


EXPECTED = np.stack([np.arange(N), np.full(N, 2)], axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def chunks_of_three(monkeypatch):
    """The chunks of 10 items are 0 to 2, 3 to 5, 6 to 8, and 9."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "embeddings"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt(encoder, collection, folder):
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(encoder, collection, folder)


def test_an_export_can_be_opened_again(folder):
    store = EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    for each in (store, EmbeddingStore.open(folder), EmbeddingStore.open(str(folder))):
        assert isinstance(each.embeddings, np.memmap) and each.embeddings.dtype == np.float32
        np.testing.assert_array_equal(each.embeddings, EXPECTED)
        assert each.ids == make_collection().ids and len(each) == N
        assert each.items[7] == {
            "id": "007",
            "sources": {"image": ["7"], "text": ["number 7", "数字 7"]},
            "attributes": {"n": 7},
        }
        assert each.items[7]["captions"] == ["number 7", "数字 7"] and each.items[7]["image"] == "7"
        assert (each.fingerprint, each.form) == ("weight 1.0", "float32")
        assert Path(each.directory) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["embeddings"]


def test_the_files_are_those_of_the_docstring(folder):
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    names = ["embeddings.npy", "files.jsonl", "items.jsonl", "manifest.json"]
    assert sorted(content(folder)) == names
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == N and "数字 3" in lines[3]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["n"], manifest["dim"], manifest["dtype"]) == (N, 2, "float32")
    for name in ("embeddings.npy", "items.jsonl"):
        listed = manifest["files"][name]
        assert listed == {
            "size": (folder / name).stat().st_size,
            "sha256": file_sha256(folder / name),
        }


def test_captions_and_file_names_of_any_characters_survive(folder, tmp_path):
    strange = ["two\nlines", "\u2028\x85", '"quotes" \\ and \t', "🦊 红色的圆", ""]
    path = tmp_path / "7\n\udc80.png"  # its name is not UTF-8
    path.write_bytes(b"7")
    collection = Collection(["a"], {"image": [[path]], "text": [strange]})
    EmbeddingStore.export(FakeEncoder(), collection, folder)
    [item] = EmbeddingStore.open(folder).items
    assert item["captions"] == strange and Path(item["image"]).read_bytes() == b"7"


def test_items_are_encoded_in_chunks_and_a_log_file_gets_plain_lines(folder, capsys):
    sizes = []
    encoder = FakeEncoder()
    encode = encoder.encode_items

    def counted(sources):
        sizes.append(len(sources["image"]))
        return encode(sources)

    encoder.encode_items = counted
    EmbeddingStore.export(encoder, make_collection(), folder)
    assert sizes == [3, 3, 3, 1]
    assert capsys.readouterr().out == "3/10 items\n6/10 items\n9/10 items\n10/10 items\n"
    EmbeddingStore.export(encoder, make_collection(3), folder)  # a single chunk
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-11), ("int8", 0.5 / 127)])
def test_embeddings_may_be_stored_in_fewer_bits(folder, dtype, step):
    encoder, collection = FakeEncoder(), make_collection()
    rows = np.random.default_rng(0).standard_normal((N, 5)).astype(np.float32)
    rows[3] = 0
    encoder.embedding_dim = 5
    encoder.encode_items = lambda sources: rows[[int(each.read()) for [each] in sources["image"]]]
    EmbeddingStore.export(encoder, collection, folder, dtype=dtype)
    store = EmbeddingStore.open(folder)
    assert np.load(folder / "embeddings.npy").dtype == dtype and store.embeddings.dtype == "float32"
    error = np.abs(store.embeddings - rows).max(axis=1)
    assert (error <= step * np.abs(rows).max(axis=1)).all() and error.max() > 0
    cosines = row_cosines(store.embeddings, rows)
    assert store.loss["mean"] == pytest.approx(1 - cosines.mean()) and cosines[3] == 0
    assert store.loss["max"] == pytest.approx(1)  # of the row of zeros
    assert EmbeddingStore.export(encoder, collection, folder).loss == {"mean": 0, "max": 0}


def test_items_are_embedded_and_written_with_all_their_sources(folder):
    store = EmbeddingStore.export(FakeEncoder(), make_items(), folder)
    assert store.embeddings.tolist() == [[3, 1], [3, 0], [0, 2]]
    assert [item["sources"] for item in store.items] == [
        {"image": ["1", "2"], "text": ["x"]},
        {"image": ["3"]},
        {"text": ["y", "z"]},
    ]
    assert store.items[2]["image"] is None and store.items[1]["captions"] == []


def test_pairs_are_a_row_an_image(folder):
    store = EmbeddingStore.export(FakeEncoder(), make_items().pairs(), folder)
    assert store.ids == ["a#0", "a#1"]
    assert store.embeddings.tolist() == [[1, 1], [2, 1]]


@pytest.mark.parametrize(("change", "n_chunks"), [({}, 1), ({"text": "z"}, 2), ({"second": 4}, 2)])
def test_a_chunk_is_used_again_for_the_same_sources_only(folder, monkeypatch, change, n_chunks):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 2)
    interrupt_second = FakeEncoder()
    encode = interrupt_second.encode_items

    def die_at_the_second_chunk(sources):
        if interrupt_second.encoded:
            raise KeyboardInterrupt
        return encode(sources)

    interrupt_second.encode_items = die_at_the_second_chunk
    interrupt(interrupt_second, make_items(), folder)
    calls, encoder = [], FakeEncoder()
    encode_all = encoder.encode_items
    encoder.encode_items = lambda sources: calls.append(sources) or encode_all(sources)
    EmbeddingStore.export(encoder, make_items(**change), folder)
    assert len(calls) == n_chunks


@pytest.mark.parametrize("name", ["form", "recipe"])
def test_chunks_of_another_form_or_fusion_are_not_mixed_in(folder, name):
    interrupt(FakeEncoder(fails_at=7), make_collection(), folder)
    encoder = FakeEncoder()
    setattr(encoder, name, "int8")
    store = EmbeddingStore.export(encoder, make_collection(), folder)
    assert len(encoder.encoded) == N and store.form == encoder.form


def test_a_killed_export_resumes(folder, tmp_path):
    killed = FakeEncoder(fails_at=7)  # in the third chunk
    interrupt(killed, make_collection(), folder)
    assert killed.encoded == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no manifest.json"):
        EmbeddingStore.open(folder)
    resumed = FakeEncoder()
    EmbeddingStore.export(resumed, make_collection(), folder)
    assert resumed.encoded == [6, 7, 8, 9]
    EmbeddingStore.export(FakeEncoder(), make_collection(), tmp_path / "uninterrupted")
    assert content(folder) == content(tmp_path / "uninterrupted")
    assert [path.name for path in folder.parent.iterdir()] == ["embeddings"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", "[2, 4]", "cut"])
def test_a_damaged_chunk_of_a_killed_export_is_made_again(folder, content):
    interrupt(FakeEncoder(fails_at=7), make_collection(), folder)
    chunk = min(folder.with_name("embeddings.partial").glob("*.npy"))
    if content == "[2, 4]":
        np.save(chunk, np.ones((2, 4), np.float32))
    else:
        chunk.write_bytes(chunk.read_bytes()[:-1] if content == "cut" else content)
    resumed = FakeEncoder()
    store = EmbeddingStore.export(resumed, make_collection(), folder)
    assert len(resumed.encoded) == 7  # the fourth chunk, and the damaged one
    np.testing.assert_array_equal(store.embeddings, EXPECTED)


@pytest.mark.parametrize(("weight", "prefix"), [(2.0, ""), (1.0, "other")])
def test_a_killed_export_of_another_model_or_other_ids_is_not_resumed(folder, weight, prefix):
    interrupt(FakeEncoder(fails_at=7), make_collection(), folder)
    encoder, collection = FakeEncoder(weight, fails_at=9), make_collection(prefix=prefix)
    interrupt(encoder, collection, folder)
    assert encoder.encoded == list(range(9))
    # Useless chunks are deleted: three are left.
    assert len(list(folder.with_name("embeddings.partial").iterdir())) == 3
    store = EmbeddingStore.export(FakeEncoder(weight), collection, folder)
    np.testing.assert_array_equal(store.embeddings, EXPECTED * weight)
    assert store.ids == collection.ids


def test_captions_that_changed_between_kill_and_resumption_are_the_new_ones(folder):
    interrupt(FakeEncoder(fails_at=7), make_collection(), folder)
    store = EmbeddingStore.export(FakeEncoder(), make_collection(captions=[["new"]] * N), folder)
    assert store.items[0]["captions"] == ["new"]


def test_a_new_export_replaces_the_old_one_only_when_it_is_complete(folder):
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    interrupt(FakeEncoder(2.0, fails_at=9), make_collection(), folder)
    np.testing.assert_array_equal(EmbeddingStore.open(folder).embeddings, EXPECTED)
    EmbeddingStore.export(FakeEncoder(2.0), make_collection(), folder)
    np.testing.assert_array_equal(EmbeddingStore.open(folder).embeddings, EXPECTED * 2)


@pytest.mark.parametrize("dies_at", range(3))
def test_a_kill_during_the_replacement_leaves_the_old_store_the_new_one_or_none(
    folder, monkeypatch, dies_at
):
    """The moves at the end: old store away (0), new store in place (1), then rmtree (2)."""
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    with monkeypatch.context() as patch:
        moves = []

        def move_or_die(path, target, rename=Path.rename):
            if len(moves) == dies_at:
                raise KillError
            moves.append(target)
            return rename(path, target)

        def die(*args, **kwargs):
            raise KillError

        patch.setattr(Path, "rename", move_or_die)
        patch.setattr(_files.shutil, "rmtree", die)  # a dead process cleans nothing
        with pytest.raises(KillError):
            EmbeddingStore.export(FakeEncoder(2.0), make_collection(), folder)
    if dies_at == 1:
        assert not folder.exists()
    else:
        weight = {0: 1, 2: 2}[dies_at]
        store = EmbeddingStore.open(folder)
        np.testing.assert_array_equal(store.embeddings, EXPECTED * weight)
    # The old store is restored before the next export begins, even if that fails.
    interrupt(FakeEncoder(3.0, fails_at=0), make_collection(), folder)
    EmbeddingStore.open(folder)
    store = EmbeddingStore.export(FakeEncoder(3.0), make_collection(), folder)
    np.testing.assert_array_equal(store.embeddings, EXPECTED * 3)
    assert [path.name for path in folder.parent.iterdir()] == ["embeddings"]


class KillError(BaseException):
    """Stands for SIGKILL."""


def test_folders_of_others_are_left_alone(folder):
    folder.mkdir(parents=True)
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)  # an empty folder may be used
    (folder / "notes.txt").write_text("mine")
    encoder = FakeEncoder(2.0)
    with pytest.raises(ValueError, match=r"holds 'notes.txt': move it away"):
        EmbeddingStore.export(encoder, make_collection(), folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest.json"):
        EmbeddingStore.export(encoder, make_collection(), folder)
    with pytest.raises(ValueError, match="is a file"):
        EmbeddingStore.export(encoder, make_collection(), folder / "notes.txt")
    partial = folder.parent / "other.partial"
    partial.mkdir()
    (partial / "mine.npy").touch()
    with pytest.raises(ValueError, match=r"other.partial is needed, but holds 'mine.npy'"):
        EmbeddingStore.export(encoder, make_collection(), folder.parent / "other")
    assert encoder.encoded == []
    assert (folder / "notes.txt").exists() and (partial / "mine.npy").exists()


def test_nan_names_the_first_item(folder):
    with pytest.raises(ValueError, match=r"item '004' holds NaN or infinity \(and 1 others"):
        EmbeddingStore.export(FakeEncoder(broken=(4, 5, 8)), make_collection(), folder)
    assert not folder.exists()


def test_an_unusable_collection_is_refused_before_the_encoder_runs(folder, tmp_path):
    encoder, collection = FakeEncoder(), make_collection()
    collection.attributes[3] = {"colour": {1, 2}}
    with pytest.raises(ValueError, match="item '003' cannot be written as JSON"):
        EmbeddingStore.export(encoder, collection, folder)
    with pytest.raises(ValueError, match="collection is empty"):
        EmbeddingStore.export(encoder, make_collection(0), folder)
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, int8; got 'int4'"):
        EmbeddingStore.export(encoder, make_collection(), folder, dtype="int4")
    collection = make_collection(4)
    collection.ids[2] = 2
    with pytest.raises(ValueError, match="ids of a collection must be strings; got 2"):
        EmbeddingStore.export(encoder, collection, folder)
    assert encoder.encoded == [] and not folder.parent.exists()
    pictures = [[draw(tmp_path / "a.png")], [tmp_path / "gone.png"]]
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        EmbeddingStore.export(encoder, Collection(["a", "b"], {"image": pictures}), folder)


def test_an_encoder_that_returns_another_shape_is_named(folder):
    encoder = FakeEncoder()
    encoder.encode_items = lambda sources: np.ones(len(sources["image"]))
    with pytest.raises(ValueError, match=r"encode_items must return \[3, 2\]"):
        EmbeddingStore.export(encoder, make_collection(), folder)


@pytest.mark.parametrize("name", ["embeddings.npy", "items.jsonl", "manifest.json"])
@pytest.mark.parametrize("change", ["flip", "cut", "delete", "pickle"])
def test_damage_is_found(folder, name, change):
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[len(data) // 2] ^= 1
    elif change == "cut":
        del data[-1:]
        data = data.rstrip(b"}")  # a manifest may well lose its last line feed
    elif change == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
        data = path.with_name(f"{name}.npy") if name != "embeddings.npy" else path
        data = data.read_bytes()
    path.unlink()
    if change != "delete":
        path.write_bytes(data)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        EmbeddingStore.open(folder)
    assert "\n" not in str(caught.value)


def forge(folder, **fields):
    """Write a manifest that fits the files, as an attacker can, with some fields changed."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | fields
    for name in ("embeddings.npy", "items.jsonl"):
        path = folder / name
        manifest["files"][name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    manifest["sha256"] = _files._manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_forged_manifest_is_refused(folder):
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    forge(folder)
    EmbeddingStore.open(folder)
    for fields, reason in (
        ({"version": 4}, "version 4 .* reads version 3"),
        ({"format": "mmret_tf index"}, "it is of format 'mmret_tf index'"),
        ({"n": N + 1}, r"must hold float32 \[11, 2\]; got float32 \[10, 2\]"),
        ({"n": None}, "must hold float32"),
        ({"dtype": "object"}, "damaged: its dtype is 'object'"),
    ):
        right = {"version": 3, "format": embedding_store.FORMAT, "n": N, "dtype": "float32"}
        forge(folder, **{**right, **fields})
        with pytest.raises(ValueError, match=reason):
            EmbeddingStore.open(folder)
    np.save(folder / "embeddings.npy", np.array([{}] * N), allow_pickle=True)
    forge(folder, **right)
    with pytest.raises(ValueError, match="not a NumPy array"):
        EmbeddingStore.open(folder)
    np.save(folder / "embeddings.npy", EXPECTED)
    for items in ("{}\n" * N, "[]\n" * N, '{"id": "a"}\n' * N, '{"id": 1}\n' * N, "[" * 9999):
        (folder / "items.jsonl").write_text(items)
        forge(folder)
        with pytest.raises(ValueError, match="damaged"):
            EmbeddingStore.open(folder)
    for manifest in ("[]", '{"format": "mmret_tf embeddings", "files": ["../../etc/passwd"]}'):
        (folder / "manifest.json").write_text(manifest)
        with pytest.raises(ValueError, match="is not a manifest of"):
            EmbeddingStore.open(folder)


def test_embeddings_of_version_0_1_are_refused_in_one_line(folder):
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    forge(folder, version=1)
    with pytest.raises(ValueError, match="version 1 .* reads version 3.* make it again") as caught:
        EmbeddingStore.open(folder)
    assert "\n" not in str(caught.value)


def test_a_store_that_is_not_there(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no manifest.json"):
            EmbeddingStore.open(folder)


def test_a_store_can_be_moved(folder):
    EmbeddingStore.export(FakeEncoder(), make_collection(), folder)
    moved = folder.rename(folder.parent / "嵌入")
    assert EmbeddingStore.open(moved).ids == make_collection().ids
