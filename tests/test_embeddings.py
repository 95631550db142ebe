"""What EmbeddingStore promises: whole files, resumed exports, nothing of others lost."""

import json
import types
from pathlib import Path

import keras
import numpy as np
import pytest

from mmret_tf import embeddings, folders
from mmret_tf.embeddings import EmbeddingStore, model_fingerprint, row_cosines
from mmret_tf.folders import file_sha256
from mmret_tf.items import ItemDataset

N = 10


class FakeModel:
    """Embeds image "/images/7.png" as (7 * weight, 1); remembers what it embedded."""

    def __init__(self, weight=1.0, fails_at=None, broken=()):
        self.weights = [np.full((2,), weight, np.float32)]
        self.fails_at = fails_at
        self.broken = broken
        self.encoded = []

    def encode_images(self, images):
        numbers = [self.number(image) for image in images]
        if self.fails_at in numbers:
            raise KeyboardInterrupt
        self.encoded += numbers
        value = [np.nan if i in self.broken else i * self.weights[0][0] for i in numbers]
        return np.stack([value, np.ones(len(numbers))], axis=1)

    @staticmethod
    def number(image):
        return int(image[0] if isinstance(image, np.ndarray) else Path(image).stem)


def make_pairs(n=N, captions=None, prefix=""):
    return types.SimpleNamespace(
        ids=[f"{prefix}{i:03}" for i in range(n)],
        image_paths=[Path(f"/images/{i}.png") for i in range(n)],
        captions=captions or [[f"number {i}", f"数字 {i}"] for i in range(n)],
        attributes=[{"n": i} for i in range(n)],
    )


def make_items(captions=("x", "y"), second="2.png"):
    """An item of two images, one of one, and one of text alone."""
    files = [[Path("/images/1.png"), Path("/images") / second], [Path("/images/3.png")], []]
    texts = [[captions[0]], [], [captions[1]]]
    return ItemDataset(["a", "b", "c"], files, texts, [{}, {"n": 1}, {}], [""] * 3)


class FakeItemModel(FakeModel):
    """Embeds an item as (sum of its images' numbers, length of its texts)."""

    def encode_items(self, images, texts):
        self.encoded.append((images, texts))
        return np.array(
            [
                [sum(map(self.number, paths)) * self.weights[0][0], sum(map(len, words))]
                for paths, words in zip(images, texts, strict=True)
            ]
        )


EXPECTED = np.stack([np.arange(N), np.ones(N)], axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def chunks_of_three(monkeypatch):
    """10 images are the chunks 0 to 2, 3 to 5, 6 to 8, and 9."""
    monkeypatch.setattr(embeddings, "CHUNK_ROWS", 3)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "embeddings"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_can_be_opened_again(folder):
    store = EmbeddingStore.export(FakeModel(), make_pairs(), folder)
    for each in (store, EmbeddingStore.open(folder), EmbeddingStore.open(str(folder))):
        assert isinstance(each.embeddings, np.memmap) and each.embeddings.dtype == np.float32
        np.testing.assert_array_equal(each.embeddings, EXPECTED)
        assert each.ids == make_pairs().ids and len(each) == N
        assert each.items[7] == {
            "id": "007",
            "image": "/images/7.png",
            "captions": ["number 7", "数字 7"],
            "attributes": {"n": 7},
        }
        assert each.fingerprint == model_fingerprint(FakeModel())
        assert Path(each.directory) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["embeddings"]


def test_the_files_are_what_the_docstring_says(folder):
    EmbeddingStore.export(FakeModel(), make_pairs(), folder)
    assert sorted(content(folder)) == ["embeddings.npy", "items.jsonl", "manifest.json"]
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


def test_captions_survive_whatever_they_hold(folder):
    strange = ["two\nlines", "\u2028\x85", '"quotes" \\ and \t', "🦊 红色的圆", "", "\udc80"]
    EmbeddingStore.export(FakeModel(), make_pairs(1, [strange]), folder)
    assert EmbeddingStore.open(folder).items[0]["captions"] == strange


def test_images_are_given_in_chunks_and_the_progress_is_shown(folder, capsys):
    sizes = []
    model = FakeModel()
    encode = model.encode_images
    model.encode_images = lambda images: sizes.append(len(images)) or encode(images)
    EmbeddingStore.export(model, make_pairs(), folder)
    assert sizes == [3, 3, 3, 1]
    assert "10/10" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-11), ("int8", 0.5 / 127)])
def test_embeddings_may_be_stored_in_fewer_bits(folder, dtype, step):
    model, pairs = FakeModel(), make_pairs()
    rows = np.random.default_rng(0).standard_normal((N, 5)).astype(np.float32)
    rows[3] = 0
    model.encode_images = lambda images: rows[[int(Path(image).stem) for image in images]]
    EmbeddingStore.export(model, pairs, folder, dtype=dtype)
    store = EmbeddingStore.open(folder)
    assert np.load(folder / "embeddings.npy").dtype == dtype and store.embeddings.dtype == "float32"
    error = np.abs(store.embeddings - rows).max(axis=1)
    assert (error <= step * np.abs(rows).max(axis=1)).all() and error.max() > 0
    cosines = row_cosines(store.embeddings, rows)
    assert store.loss["mean"] == pytest.approx(1 - cosines.mean()) and cosines[3] == 0
    assert EmbeddingStore.export(model, pairs, folder).loss == {"mean": 0, "max": 0}


def test_items_are_embedded_and_written_with_all_their_images(folder):
    store = EmbeddingStore.export(FakeItemModel(), make_items(), folder)
    assert store.embeddings.tolist() == [[3, 1], [3, 0], [0, 1]]
    paths = ["/images/1.png", "/images/2.png"]
    assert store.items == [
        {"id": "a", "image": paths[0], "images": paths, "captions": ["x"], "attributes": {}},
        {"id": "b", "image": "/images/3.png", "captions": [], "attributes": {"n": 1}},
        {"id": "c", "image": None, "captions": ["y"], "attributes": {}},
    ]
    model = FakeItemModel()
    EmbeddingStore.export(model, make_pairs(2), folder)  # pairs, as items of one image
    paths = [["/images/0.png"], ["/images/1.png"]]
    assert model.encoded == [(paths, [["number 0", "数字 0"], ["number 1", "数字 1"]])]
    model = FakeItemModel()
    EmbeddingStore.export(model, make_pairs(2), folder, features=np.ones((2, 3)))
    assert model.encoded == [1, 1]  # by encode_images


@pytest.mark.parametrize(
    ("change", "is_resumed"),
    [({}, True), ({"captions": ("x", "z")}, False), ({"second": "4.png"}, False)],
)
def test_a_chunk_of_items_knows_all_images_and_captions(folder, monkeypatch, change, is_resumed):
    monkeypatch.setattr(embeddings, "CHUNK_ROWS", 2)
    model = FakeItemModel()
    encode = model.encode_items

    def die_at_the_second_chunk(images, texts):
        if model.encoded:
            raise KeyboardInterrupt
        return encode(images, texts)

    model.encode_items = die_at_the_second_chunk
    before = make_items(("y", "z")) if "captions" in change else make_items()
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(model, before, folder)
    model = FakeItemModel()
    EmbeddingStore.export(model, make_items(**change), folder)
    assert len(model.encoded) == (1 if is_resumed else 2)


def test_items_need_a_model_that_embeds_items(folder):
    for model, features in ((FakeModel(), None), (FakeItemModel(), np.ones((3, 2)))):
        with pytest.raises(ValueError, match="needs a model with encode_items, and no features"):
            EmbeddingStore.export(model, make_items(), folder, features)
    assert not folder.parent.exists()


def test_a_model_upon_an_encoder_has_the_encoders_fingerprint(folder):
    model = FakeItemModel(5.0, fails_at=None)
    model.encoder = FakeModel(2.0)
    model.encoder.image_encoder = types.SimpleNamespace(name="int8")
    store = EmbeddingStore.export(model, make_items(), folder)
    assert store.fingerprint == model_fingerprint(model.encoder) and store.encoder == "int8"
    digests = set()
    for weight in (5.0, 6.0):
        model.weights = [np.full((2,), weight, np.float32)]
        digests.add(embeddings._Rows(model, make_items(), None).digest(slice(0, 3)))
    model.encoder = FakeModel(3.0)
    digests.add(embeddings._Rows(model, make_items(), None).digest(slice(0, 3)))
    assert len(digests) == 3


def test_what_another_form_of_the_tower_embedded_is_not_mixed_in(folder):
    model = FakeModel(fails_at=7)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(model, make_pairs(), folder)
    model = FakeModel()
    model.image_encoder = types.SimpleNamespace(name="int8")
    store = EmbeddingStore.export(model, make_pairs(), folder)
    assert len(model.encoded) == N and store.encoder == "int8"


def test_features_stand_in_for_the_images(folder):
    features = np.repeat(np.arange(N)[:, None], 4, axis=1).astype(np.float32)
    store = EmbeddingStore.export(FakeModel(), make_pairs(), folder, features=features)
    np.testing.assert_array_equal(store.embeddings, EXPECTED)


@pytest.mark.parametrize(
    "features", [np.ones((N - 1, 4)), np.ones(N), np.ones((N, 4), int), [["a"]] * N]
)
def test_features_that_do_not_fit_are_refused(folder, features):
    with pytest.raises(ValueError, match=r"features must be a float array \[10, features\]"):
        EmbeddingStore.export(FakeModel(), make_pairs(), folder, features=features)


def test_a_killed_export_goes_on_where_it_stopped(folder, tmp_path):
    killed = FakeModel(fails_at=7)  # in the third chunk
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(killed, make_pairs(), folder)
    assert killed.encoded == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError):
        EmbeddingStore.open(folder)
    resumed = FakeModel()
    EmbeddingStore.export(resumed, make_pairs(), folder)
    assert resumed.encoded == [6, 7, 8, 9]
    EmbeddingStore.export(FakeModel(), make_pairs(), tmp_path / "uninterrupted")
    assert content(folder) == content(tmp_path / "uninterrupted")
    assert [path.name for path in folder.parent.iterdir()] == ["embeddings"]


@pytest.mark.parametrize(
    ("weight", "pairs"), [(2.0, make_pairs()), (1.0, make_pairs(prefix="other"))]
)
def test_a_killed_export_of_another_model_or_other_ids_begins_anew(folder, weight, pairs):
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(FakeModel(fails_at=7), make_pairs(), folder)
    model = FakeModel(weight, fails_at=9)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(model, pairs, folder)
    assert model.encoded == list(range(9))
    # Chunks of no use are gone: three are left.
    assert len(list(folder.with_name("embeddings.partial").iterdir())) == 3
    store = EmbeddingStore.export(FakeModel(weight), pairs, folder)
    np.testing.assert_array_equal(store.embeddings, EXPECTED * [weight, 1])
    assert store.ids == pairs.ids


def test_other_features_begin_anew(folder):
    features = np.repeat(np.arange(N)[:, None], 4, axis=1).astype(np.float32)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(FakeModel(fails_at=7), make_pairs(), folder, features=features)
    store = EmbeddingStore.export(FakeModel(), make_pairs(), folder, features=features[::-1])
    np.testing.assert_array_equal(store.embeddings, EXPECTED[::-1])


def test_captions_changed_between_kill_and_resumption_are_the_new_ones(folder):
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(FakeModel(fails_at=7), make_pairs(), folder)
    store = EmbeddingStore.export(FakeModel(), make_pairs(captions=[["new"]] * N), folder)
    assert store.items[0]["captions"] == ["new"]


def test_a_new_export_replaces_the_old_one_only_when_it_is_complete(folder):
    EmbeddingStore.export(FakeModel(), make_pairs(), folder)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(FakeModel(2.0, fails_at=9), make_pairs(), folder)
    np.testing.assert_array_equal(EmbeddingStore.open(folder).embeddings, EXPECTED)
    EmbeddingStore.export(FakeModel(2.0), make_pairs(), folder)
    np.testing.assert_array_equal(EmbeddingStore.open(folder).embeddings, EXPECTED * [2, 1])


@pytest.mark.parametrize("dies_at", range(3))
def test_a_kill_during_the_replacement_leaves_the_old_store_the_new_one_or_none(
    folder, monkeypatch, dies_at
):
    """The moves at the end: old store away (0), new store in place (1), then rmtree (2)."""
    EmbeddingStore.export(FakeModel(), make_pairs(), folder)
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
        patch.setattr(folders.shutil, "rmtree", die)  # a dead process cleans nothing
        with pytest.raises(KillError):
            EmbeddingStore.export(FakeModel(2.0), make_pairs(), folder)
    if dies_at == 1:
        assert not folder.exists()
    else:
        weight = {0: 1, 2: 2}[dies_at]
        store = EmbeddingStore.open(folder)
        np.testing.assert_array_equal(store.embeddings, EXPECTED * [weight, 1])
    # The old store is put back before the next export begins, even if that fails.
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(FakeModel(3.0, fails_at=0), make_pairs(), folder)
    EmbeddingStore.open(folder)
    store = EmbeddingStore.export(FakeModel(3.0), make_pairs(), folder)
    np.testing.assert_array_equal(store.embeddings, EXPECTED * [3, 1])
    assert [path.name for path in folder.parent.iterdir()] == ["embeddings"]


class KillError(BaseException):
    """Stands for SIGKILL."""


def test_folders_of_others_are_left_alone(folder):
    folder.mkdir(parents=True)
    EmbeddingStore.export(FakeModel(), make_pairs(), folder)  # nothing is lost in an empty one
    (folder / "notes.txt").write_text("mine")
    model = FakeModel(2.0)
    with pytest.raises(ValueError, match=r"holds 'notes.txt': move it away"):
        EmbeddingStore.export(model, make_pairs(), folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest.json"):
        EmbeddingStore.export(model, make_pairs(), folder)
    with pytest.raises(ValueError, match="is a file"):
        EmbeddingStore.export(model, make_pairs(), folder / "notes.txt")
    partial = folder.parent / "other.partial"
    partial.mkdir()
    (partial / "mine.npy").touch()
    with pytest.raises(ValueError, match=r"other.partial is needed, but holds 'mine.npy'"):
        EmbeddingStore.export(model, make_pairs(), folder.parent / "other")
    assert (
        model.encoded == [] and (folder / "notes.txt").exists() and (partial / "mine.npy").exists()
    )


def test_nan_names_the_first_item(folder):
    with pytest.raises(ValueError, match=r"item '004' holds NaN or infinity \(and 1 others"):
        EmbeddingStore.export(FakeModel(broken=(4, 5, 8)), make_pairs(), folder)
    assert not folder.exists()


def test_what_cannot_be_embedded_is_refused_before_the_model_runs(folder):
    model, pairs = FakeModel(), make_pairs()
    pairs.attributes[3] = {"colour": {1, 2}}
    with pytest.raises(ValueError, match="item '003' cannot be written as JSON"):
        EmbeddingStore.export(model, pairs, folder)
    with pytest.raises(ValueError, match="collection is empty"):
        EmbeddingStore.export(model, make_pairs(0), folder)
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, int8; got 'int4'"):
        EmbeddingStore.export(model, make_pairs(), folder, dtype="int4")
    assert model.encoded == [] and not folder.parent.exists()


def test_a_model_that_returns_something_else_is_named(folder):
    model = FakeModel()
    model.encode_images = lambda images: np.ones(len(images))
    with pytest.raises(ValueError, match=r"encode_images must return \[n, dim\]"):
        EmbeddingStore.export(model, make_pairs(), folder)


@pytest.mark.parametrize("name", ["embeddings.npy", "items.jsonl", "manifest.json"])
@pytest.mark.parametrize("change", ["flip", "cut", "delete", "pickle"])
def test_damage_is_found(folder, name, change):
    EmbeddingStore.export(FakeModel(), make_pairs(), folder)
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
    manifest["sha256"] = folders._manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_forged_manifest_brings_no_harm(folder):
    EmbeddingStore.export(FakeModel(), make_pairs(), folder)
    forge(folder)
    EmbeddingStore.open(folder)
    for fields, reason in (
        ({"version": 2}, "version 2 .* reads version 1: update mmret_tf"),
        ({"format": "mmret_tf index"}, "it is of format 'mmret_tf index'"),
        ({"n": N + 1}, r"must hold float32 \[11, 2\]; got float32 \[10, 2\]"),
        ({"n": None}, "must hold float32"),
    ):
        forge(folder, **{"version": 1, "format": embeddings.FORMAT, "n": N, **fields})
        with pytest.raises(ValueError, match=reason):
            EmbeddingStore.open(folder)
    np.save(folder / "embeddings.npy", np.array([{}] * N), allow_pickle=True)
    forge(folder, n=N)
    with pytest.raises(ValueError, match="no NumPy array"):
        EmbeddingStore.open(folder)
    np.save(folder / "embeddings.npy", EXPECTED)
    for items in ("{}\n" * N, "[]\n" * N, '{"id": "a"}\n' * N, '{"id": 1}\n' * N, "[" * 9999):
        (folder / "items.jsonl").write_text(items)
        forge(folder)
        with pytest.raises(ValueError, match="damaged"):
            EmbeddingStore.open(folder)
    for manifest in ("[]", '{"format": "mmret_tf embeddings", "files": ["../../etc/passwd"]}'):
        (folder / "manifest.json").write_text(manifest)
        with pytest.raises(ValueError, match="no manifest"):
            EmbeddingStore.open(folder)


def test_a_store_that_is_not_there(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no manifest.json"):
            EmbeddingStore.open(folder)


def test_a_store_can_be_moved(folder):
    EmbeddingStore.export(FakeModel(), make_pairs(), folder)
    moved = folder.rename(folder.parent / "嵌入")
    assert EmbeddingStore.open(moved).ids == make_pairs().ids


def test_the_fingerprint_survives_saving_and_changes_with_training(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.LayerNormalization()])
    model.add(keras.layers.Dense(2))
    model.compile("sgd", "mse")
    before = model_fingerprint(model)
    model.save(tmp_path / "model.keras")
    assert model_fingerprint(keras.saving.load_model(tmp_path / "model.keras")) == before
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    assert model_fingerprint(model) != before


def test_the_fingerprint_knows_vocabulary_image_size_and_shapes():
    def fingerprint(words=("a",), image_size=64, weights=((1, 2), (3,))):
        text = types.SimpleNamespace(get_vocabulary=lambda: list(words))
        arrays = [np.array(weight, np.float32) for weight in weights]
        return model_fingerprint(
            types.SimpleNamespace(weights=arrays, text_preprocessor=text, image_size=image_size)
        )

    different = [
        fingerprint(),
        fingerprint(words=("红",)),
        fingerprint(image_size=96),
        fingerprint(weights=((1,), (2, 3))),
        fingerprint(weights=((1, 2, 3),)),
        model_fingerprint(FakeModel()),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint() == different[0] and len(different[0]) == 64
