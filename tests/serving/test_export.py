"""Exports for TensorFlow Serving, loaded as it does, in a fresh process: by the V1 loader, and by
the C API without Python's TensorFlow."""

import base64
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import tensorflow as tf
from PIL import Image
from serving.run_signatures import answer, load
from serving.serving_models import ask_everything, make_model, make_searcher, picture
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from mmret_tf.fusion import FusedEncoder, HybridFusion
from mmret_tf.models import VariantEncoder
from mmret_tf.ranking import BruteForceIndex, Reranker, Searcher
from mmret_tf.serving import docker_command, export_saved_model
from mmret_tf.serving import export as export_module
from mmret_tf.serving.export import _write_warm_up
from mmret_tf.serving.signatures import make_signatures

TEXTS = ["a red circle", "红色的圆", "ＲＥＤ, circle!", "", "zzz 龘", "blue " * 100]


def to_json(inputs):
    return {
        name: [
            {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
            for value in values
        ]
        for name, values in inputs.items()
    }


@pytest.fixture(scope="module")
def run(server):
    """Requests to the export with exact search, in the process of the server."""

    def ask(signature, inputs):
        body = json.dumps({"signature_name": signature, "inputs": to_json(inputs)})
        url = f"http://{server['rest']}/v1/models/small:predict"
        given = requests.post(url, data=body, timeout=60).json()
        outputs = given.get("outputs", given)
        return outputs if isinstance(outputs, dict) else {"embedding": outputs}

    return lambda asked: [ask(*request) for request in asked]


def run_alone(export, asked, *options):
    """Answers of a fresh process without this package; the options are of `run_signatures.py`."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("run_signatures.py"), export, *options],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def only(monkeypatch):
    """Restricts exports to some signatures, because each takes seconds to trace."""

    def restrict(*names):
        def make(*arguments):
            signatures = make_signatures(*arguments)
            return {name: signatures[name] for name in names}

        monkeypatch.setattr(export_module, "make_signatures", make)

    return restrict


@pytest.fixture(scope="module")
def encoders(searcher, tmp_path_factory):
    """An export of an encoder alone, whose image tower is compressed, as version 3. Before it, an
    export was killed and the user wrote a configuration. The API of TF Serving is not installed."""
    base = tmp_path_factory.mktemp("exports") / "m"
    (base / "3.partial" / "variables").mkdir(parents=True)
    (base / "batching_parameters.txt").write_text("max_batch_size { value: 8 }")
    compressed = VariantEncoder(searcher.encoder, {"image": SimpleNamespace()}, form="int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow_serving.apis", None)
        with pytest.warns(UserWarning, match=r'pip install "mmret_tf\[serving\]"'):
            return export_saved_model(compressed, base, 3, index=None)


# What a server answers


def ask(searcher, rows):
    """Requests of some rows to all signatures, and the answers of Python."""
    pictures = [picture(0), picture(1, (9, 30), "JPEG"), picture(2, format="WEBP")]
    texts = [TEXTS[row % len(TEXTS)] for row in range(rows)]
    images = [pictures[row % len(pictures)] for row in range(rows)]
    return ask_everything(searcher, texts, images, k=7)


def check(answers, asked):
    for given, ((signature, _), right) in zip(answers, asked, strict=True):
        assert "error" not in given, given
        if signature.startswith("encode"):
            np.testing.assert_allclose(given["embedding"], right, atol=1e-5)
            continue
        for row, results in enumerate(right):
            scores = [result.score for result in results]
            np.testing.assert_allclose(given["scores"][row], scores, atol=1e-5)
            assert given["ids"][row] == [result.id for result in results]
            captions = [result.item["captions"] for result in results]
            assert [text.split("\n") for text in given["captions"][row]] == captions


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_every_signature_answers_as_python_does(searcher, run, rows):
    asked = ask(searcher, rows)
    check(run([request for request, _ in asked]), asked)


def test_an_export_for_the_ops_of_scann_answers_as_python_does(searcher, tmp_path, only):
    pytest.importorskip("scann")
    both = ("search_by_text", "search_by_embedding")
    only(*both)
    with_integers = make_searcher(searcher.encoder, ids=[2**40 - row for row in range(300)])
    export = export_saved_model(with_integers, tmp_path / "scann", 1, "scann", k=7)
    asked = [each for each in ask(with_integers, 3) if each[0][0] in both]
    for options in (["scann"], ["scann", "c_api"]):
        check(run_alone(export, [request for request, _ in asked], *options), asked)


def test_the_loader_of_a_server_needs_nothing_of_python(searcher, small):
    asked = [*ask(searcher, 1), *ask(searcher, 3)]
    refused = ["search_by_image", to_json({"image": [b"no picture"]})]
    *answers, last = run_alone(small, [*(request for request, _ in asked), refused], "c_api")
    check(answers, asked)
    assert "not an image: expected JPEG" in last["error"]


def test_a_trained_fusion_embeds_the_queries_without_a_weight(tmp_path, only):
    only("search_by_text_and_image")
    fused = FusedEncoder(make_model(), HybridFusion(4, heads=2))
    generator = np.random.default_rng(0)
    weights = fused.fusion.get_weights()
    fused.fusion.set_weights([each + 0.5 * generator.normal(size=each.shape) for each in weights])
    searcher = make_searcher(fused)
    signatures = load(str(export_saved_model(searcher, tmp_path / "fused", 1, k=7)))

    fusing = searcher.search("a red circle", picture(0), k=7)
    summing = searcher.search("a red circle", picture(0), k=7, text_weight=0.5)
    assert [result.id for result in fusing] != [result.id for result in summing]
    for sent, right in ([-1.0], [fusing]), ([0.5, -1.0], [summing, fusing]):
        inputs = {"text": ["a red circle"] * len(sent), "image": [picture(0)] * len(sent)}
        request = ["search_by_text_and_image", to_json({**inputs, "text_weight": sent})]
        check([answer(signatures, *request)], [(request, right)])


def test_both_stages_answer_as_python_does(tmp_path, only):
    """Also through the C++ loader; an item has two pictures."""
    only("search_by_text", "search_by_image")
    encoder = make_model()
    pictures = [picture(number) for number in range(7)]
    sources = {"image": [[*pictures[:2]], *([each] for each in pictures[2:])]}
    ids = [f"{row}" for row in range(6)]
    items = [
        {"id": key, "sources": {"image": each, "text": [key]}}
        for key, each in zip(ids, sources["image"], strict=True)
    ]
    index = BruteForceIndex.build(encoder.encode_items(sources), ids)
    reranker = Reranker(encoder, dim=8, weight=2.0)
    searcher = Searcher(encoder, index, items, reranker, rerank_k=4)
    right = [searcher.search(text, k=3) for text in TEXTS[:3]]
    one_stage = Searcher(encoder, index, items)
    changed = [[each.id for each in one_stage.search(text, k=3)] for text in TEXTS[:3]]
    assert [[each.id for each in found] for found in right] != changed
    export = export_saved_model(searcher, tmp_path / "two", 1, k=3)
    by_image = [searcher.search(image=pictures[3], k=3)]
    asked = [
        (["search_by_text", {"text": TEXTS[:1]}], right[:1]),
        (["search_by_text", {"text": TEXTS[:3]}], right),
        (["search_by_image", to_json({"image": pictures[3:4]})], by_image),
    ]
    check(run_alone(export, [request for request, _ in asked], "c_api"), asked)
    mixed = [*items, {"id": "note", "captions": ["a note"]}]
    index = BruteForceIndex.build(np.eye(7, 4), [*ids, "note"])
    with pytest.raises(ValueError, match="needs a gallery of one modality; this has image, text"):
        export_saved_model(Searcher(encoder, index, mixed, reranker), tmp_path / "mixed", 1)


def test_a_bad_request_is_refused_in_words_and_the_next_one_answered(run):
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    whole = picture(3, format="JPEG")
    both = "search_by_text_and_image"
    refused = [
        (
            ["search_by_image", {"image": [whole, b"a string"]}],
            "not an image: expected JPEG, PNG, GIF, BMP or WebP",
        ),
        (["encode_image", {"image": [whole, b""]}], "empty file"),
        (
            ["search_by_image", {"image": [whole, huge.getvalue()]}],
            "too large: 20000 x 20000 pixels",
        ),
        (["encode_image", {"image": [whole, whole[: len(whole) // 2]]}], "JPEG"),
        (["encode_text", {"text": []}], "no rows: expected at least one"),
        (["search_by_text", {"text": []}], "no rows: expected at least one"),
        (["search_by_image", {"image": []}], "no rows: expected at least one"),
        (
            [both, {"text": ["a"], "image": [whole], "text_weight": [2]}],
            "weights 0 to 1, or -1",
        ),
        (
            [both, {"text": ["a"] * 2, "image": [whole], "text_weight": [1]}],
            "text, image and text_weight must have equal rows",
        ),
        (
            ["search_by_embedding", {"embedding": [[1, 2, 3, float("nan")]]}],
            "queries must be finite",
        ),
    ]
    good = ["search_by_image", {"image": [whole]}]
    *answers, last = run([*(request for request, _ in refused), good])
    for (_, words), given in zip(refused, answers, strict=True):
        assert words in given["error"], given
    assert len(last["ids"][0]) == 7


def test_without_an_index_only_the_encoders_are_exported_in_float32(searcher, encoders):
    pictures = [picture(0), picture(1, format="JPEG")]
    signatures = load(str(encoders))
    text = answer(signatures, "serving_default", {"text": ["红色的圆"]})["embedding"]
    image = answer(signatures, "encode_image", to_json({"image": pictures}))["embedding"]
    np.testing.assert_allclose(text, searcher.encoder.encode_texts(["红色的圆"]), atol=1e-5)
    np.testing.assert_allclose(image, searcher.encoder.encode_images(pictures), atol=1e-5)
    assert set(outputs(encoders)) == {"serving_default", "encode_text", "encode_image"}
    assert b"search" not in (encoders / "saved_model.pb").read_bytes()


def outputs(folder):
    """The names of the outputs of each signature, as the file has them."""
    file = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    signatures = dict(file.meta_graphs[0].signature_def)
    signatures.pop("__saved_model_init_op")
    return {name: set(signature.outputs) for name, signature in signatures.items()}


# The files


def test_the_folder_holds_the_files_of_a_server(small):
    base = small.parent
    files = ["1", "batching_parameters.txt", "models.config"]
    assert sorted(path.name for path in base.iterdir()) == files
    config = (base / "models.config").read_text()
    assert 'name: "small"' in config and 'base_path: "/models/small"' in config
    assert "max_batch_size { value: 64 }" in (base / "batching_parameters.txt").read_text()
    command = shlex.split(docker_command(base))
    assert command[:2] == ["docker", "run"] and f"{base}:/models/small:ro" in command
    assert "--model_config_file=/models/small/models.config" in command
    # REST would encode an output whose name ends in _bytes.
    names = set.union(*outputs(small).values())
    assert names == {"ids", "scores", "captions", "embedding"}


def test_tf_serving_can_parse_the_configuration(small):
    text_format = pytest.importorskip("google.protobuf.text_format")
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    text = (small.parent / "models.config").read_text()
    (model,) = text_format.Parse(text, ModelServerConfig()).model_config_list.config
    assert (model.name, model.model_platform) == ("small", "tensorflow")


def read_warm_up(folder):
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [PredictionLog.FromString(record).predict_log.request for record in records]


def test_the_warm_up_asks_every_signature(small):
    """The server of `run` has answered it before it was ready."""
    rows = []
    for request in read_warm_up(small):
        assert request.model_spec.name == "small"
        (n,) = {len(tf.make_ndarray(each)) for each in request.inputs.values()}
        rows.append((request.model_spec.signature_name, n))
    names = ["encode_image", "encode_text", "search_by_embedding", "search_by_image"]
    names += ["search_by_text", "search_by_text_and_image"]
    assert sorted(rows) == [(name, n) for name in names for n in (1, 8)]


def test_the_warm_up_leaves_out_modalities_without_an_example(tmp_path):
    text, number = (tf.TensorSpec([None], tf.string, name) for name in ("text", "number"))
    signatures = {"encode_number": (None, [number]), "encode_text": (None, [text])}
    _write_warm_up(tmp_path, "m", signatures, dim=4)
    names = [request.model_spec.signature_name for request in read_warm_up(tmp_path)]
    assert names == ["encode_text"] * 2


def test_an_export_keeps_the_files_of_users_and_removes_those_of_killed_exports(encoders):
    base = encoders.parent
    assert encoders == base / "3"
    files = ["3", "batching_parameters.txt", "models.config"]
    assert sorted(path.name for path in base.iterdir()) == files
    assert "value: 8" in (base / "batching_parameters.txt").read_text()
    assert not (encoders / "assets.extra").exists()


def test_a_version_is_never_replaced(searcher, encoders):
    before = {path: path.read_bytes() for path in encoders.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="3 exists, .* the next free one is 4"):
        export_saved_model(searcher.encoder, encoders.parent, 3, index=None)
    assert before == {path: path.read_bytes() for path in encoders.rglob("*") if path.is_file()}


def test_a_version_appears_whole_or_not_at_all(searcher, tmp_path, monkeypatch):
    class Archive:
        def __getattr__(self, name):
            return lambda *args: None

        def write_out(self, folder, **options):
            Path(folder, "assets.extra").mkdir(parents=True)
            assert not [path for path in tmp_path.iterdir() if path.name.isdecimal()]
            raise KeyboardInterrupt

    monkeypatch.setattr("keras.export.ExportArchive", Archive)
    with pytest.raises(KeyboardInterrupt):
        export_saved_model(searcher.encoder, tmp_path, 2, index=None)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "version must be an integer of at least 1; got 0"),
        ({"version": "1"}, "version must be an integer of at least 1; got '1'"),
        ({"k": 0}, "k must be"),
        ({"index": "faiss"}, 'index must be "brute_force", "scann" or None'),
    ],
)
def test_wrong_arguments_are_explained(searcher, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(searcher, tmp_path / "m", **{"version": 1, **changes})
    assert not (tmp_path / "m").exists()


def test_an_encoder_alone_has_no_gallery_and_not_every_folder_is_a_name(searcher, tmp_path):
    with pytest.raises(ValueError, match="the model's name in URLs .* got 'my \"model\"'"):
        export_saved_model(searcher, tmp_path / 'my "model"', 1)
    with pytest.raises(ValueError, match="give a Searcher, or index=None"):
        export_saved_model(searcher.encoder, tmp_path / "m", 1)
