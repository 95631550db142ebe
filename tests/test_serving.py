"""Exports for TensorFlow Serving, loaded as it does: by the V1 loader, in a fresh process."""

import base64
import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving_models import ask_everything, make_searcher, picture

from mmret_tf import serving
from mmret_tf.dual_encoder import load_model
from mmret_tf.fused_encoder import FusedEncoder, load_fused_encoder
from mmret_tf.fusion import GatedFusion, HybridFusion
from mmret_tf.index import build_index
from mmret_tf.searcher import Searcher
from mmret_tf.serving import docker_command, export_saved_model

SCRIPT = Path(__file__).with_name("run_signatures.py")
ENGINES = pytest.mark.parametrize("engine", ["brute_force", "scann"])
TEXTS = ["a red circle", "红色的圆", "ＲＥＤ, circle!", "", "zzz 龘", "blue " * 100]


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    """The small model as it comes from its file, where nothing was called yet."""
    made = make_searcher()
    path = tmp_path_factory.mktemp("model") / "model.keras"
    made.model.save(path)
    return Searcher(load_model(path), made.index, list(made.items.values()))


@pytest.fixture(scope="module")
def exports(searcher, tmp_path_factory):
    """The folder of a version for each engine."""
    folder = tmp_path_factory.mktemp("exports")
    engines = ["brute_force"] if sys.platform != "linux" else ["brute_force", "scann"]
    return {each: export_saved_model(searcher, folder / each, 1, each, k=7) for each in engines}


@contextlib.contextmanager
def loaded(export, *options):
    """A function from requests to the answers of a fresh process."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, export, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def run(requests):
        requests = [[name, to_json(inputs)] for name, inputs in requests]
        process.stdin.write(json.dumps(requests).encode() + b"\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with process:  # at the end its input is closed, and with that it ends
        yield run


def to_json(inputs):
    return {
        name: [
            {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
            for value in values
        ]
        for name, values in inputs.items()
    }


@pytest.fixture(scope="module")
def run(exports):
    """Requests to the export with exact search."""
    with loaded(exports["brute_force"]) as function:
        yield function


@ENGINES
def test_every_signature_answers_as_python_does(engine, searcher, exports, run):
    if engine not in exports:
        pytest.skip("ScaNN has wheels for Linux alone")
    pictures = [picture(0), picture(1, (9, 30), "JPEG"), picture(2, format="WEBP")]
    asked = []
    for rows in (1, 3, 64):
        texts = [TEXTS[row % len(TEXTS)] for row in range(rows)]
        images = [pictures[row % len(pictures)] for row in range(rows)]
        asked += ask_everything(searcher, texts, images, k=7)
    requests = [request for request, _ in asked]
    if engine == "scann":
        with loaded(exports["scann"], "scann") as run_scann:
            answers = run_scann(requests)
    else:
        answers = run(requests)
    check_answers(asked, answers)


def check_answers(asked, answers):
    for ((signature, _), right), answer in zip(asked, answers, strict=True):
        if signature.startswith("encode"):
            np.testing.assert_allclose(answer["embedding"], right, atol=1e-5)
            continue
        for row, results in enumerate(right):
            scores = [result.score for result in results]
            np.testing.assert_allclose(answer["scores"][row], scores, atol=1e-5)
            assert answer["ids"][row] == [result.id for result in results]
            captions = [result.item["captions"] for result in results]
            assert [text.split("\n") for text in answer["captions"][row]] == captions


@pytest.mark.parametrize("make_fusion", [lambda: GatedFusion(4), lambda: HybridFusion(4, heads=2)])
def test_a_trained_fusion_answers_as_python_does(make_fusion, searcher, tmp_path):
    fused = FusedEncoder(make_searcher().model, make_fusion())
    generator = np.random.default_rng(0)
    weights = fused.fusion.get_weights()
    fused.fusion.set_weights([each + 0.5 * generator.normal(size=each.shape) for each in weights])
    fused.save(tmp_path / "fusion.keras")
    fused = load_fused_encoder(tmp_path / "fusion.keras")
    with_fusion = Searcher(fused, searcher.index, list(searcher.items.values()))
    query = {"text": "a red circle", "image": picture(0)}
    plain, trained = searcher.search(**query), with_fusion.search(**query)
    assert [result.id for result in plain] != [result.id for result in trained]

    export = export_saved_model(with_fusion, tmp_path / "fused", 1, k=7)
    asked = []
    for rows in (1, 3):  # the first row is without a weight, and the others have one
        asked += ask_everything(with_fusion, TEXTS[:rows], [picture(row) for row in range(rows)], 7)
    with loaded(export) as run:
        check_answers(asked, run([request for request, _ in asked]))


def test_a_bad_request_is_refused_in_words_and_the_next_one_answered(run):
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    whole = picture(3, format="JPEG")
    good = ["search_by_image", {"image": [whole]}]
    refused = {
        "not an image: expected JPEG, PNG, GIF, BMP or WebP": ("search_by_image", b"a string"),
        "empty file": ("encode_image", b""),
        "too large: 20000 x 20000 pixels": ("search_by_image", huge.getvalue()),
        "JPEG": ("encode_image", whole[: len(whole) // 2]),
    }
    requests = [[signature, {"image": [whole, data]}] for signature, data in refused.values()]
    empty = [
        ["encode_text", {"text": []}],
        ["search_by_text", {"text": []}],
        ["search_by_image", {"image": []}],
    ]
    weight = ["search_by_text_and_image", {"text": ["a"], "image": [whole], "text_weight": [2]}]
    uneven = ["search_by_text_and_image", {"text": ["a"] * 2, "image": [whole], "text_weight": [1]}]
    nan = ["search_by_embedding", {"embedding": [[1, 2, 3, float("nan")]]}]
    answers = run([*requests, *empty, weight, uneven, nan, good])
    for words, answer in zip(refused, answers, strict=False):
        assert words in answer["error"], answer
    for answer in answers[4:7]:
        assert "no rows: expected at least one" in answer["error"]
    assert "text_weight must be from 0 to 1" in answers[7]["error"]
    assert "text, image and text_weight must have equal rows" in answers[8]["error"]
    assert "queries must be finite" in answers[9]["error"]
    assert len(answers[10]["ids"][0]) == 7


def test_without_an_index_there_are_only_the_encoders(searcher, tmp_path):
    folder = export_saved_model(searcher.model, tmp_path / "m", 3, index=None)
    assert folder == tmp_path / "m" / "3"
    requests = [[name, {"text": ["红色的圆"]}] for name in ("encode_text", "serving_default")]
    with loaded(folder) as run_encoders:
        answers = run_encoders(requests)
    for answer in answers:
        right = searcher.model.encode_texts(["红色的圆"])
        np.testing.assert_allclose(answer["embedding"], right, atol=1e-5)
    assert "search" not in (folder / "saved_model.pb").read_bytes().decode("latin1")


def test_integer_ids_stay_integers_and_what_is_missing_is_said(searcher, tmp_path, monkeypatch):
    index = build_index(np.eye(4), [30, 10, 20, 2**40])
    items = [{"id": key, "captions": []} for key in index.ids]
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.warns(UserWarning, match=r'pip install "mmret_tf\[serving\]"'):
        folder = export_saved_model(Searcher(searcher.model, index, items), tmp_path / "m", 1)
    assert not (folder / "assets.extra").exists()
    with loaded(folder) as run_integers:
        (answer,) = run_integers([["search_by_embedding", {"embedding": [[0.1, 0.2, 0, 0.9]]}]])
    assert answer["ids"] == [[2**40, 10, 30, 20]] and answer["captions"] == [[""] * 4]


def test_the_folder_holds_what_a_server_needs(exports):
    folder = exports["brute_force"]
    base = folder.parent
    assert sorted(path.name for path in base.iterdir()) == [
        "1",
        "batching_parameters.txt",
        "models.config",
    ]
    config = (base / "models.config").read_text()
    assert 'name: "brute_force"' in config and 'base_path: "/models/brute_force"' in config
    assert "max_batch_size { value: 64 }" in (base / "batching_parameters.txt").read_text()
    command = shlex.split(docker_command(base))
    assert command[:2] == ["docker", "run"] and f"{base}:/models/brute_force:ro" in command
    assert "--model_config_file=/models/brute_force/models.config" in command
    # No output may end in _bytes: REST would hand it out in base64.
    definition = tf.saved_model.load(folder).signatures
    names = {name for each in definition.values() for name in each.structured_outputs}
    assert names == {"ids", "scores", "captions", "embedding"}


def test_the_configuration_is_what_tf_serving_parses(exports):
    text_format = pytest.importorskip("google.protobuf.text_format")
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    base = exports["brute_force"].parent
    config = text_format.Parse((base / "models.config").read_text(), ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.model_platform) == ("brute_force", "tensorflow")


def test_the_warm_up_asks_every_signature_and_is_answered(exports, run):
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    path = exports["brute_force"] / "assets.extra" / "tf_serving_warmup_requests"
    requests = []
    for record in tf.data.TFRecordDataset(str(path)):
        request = PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "brute_force"
        inputs = {name: tf.make_ndarray(value).tolist() for name, value in request.inputs.items()}
        if "text" in inputs:
            inputs["text"] = [text.decode() for text in inputs["text"]]
        requests.append([request.model_spec.signature_name, inputs])
    rows = sorted((name, len(next(iter(inputs.values())))) for name, inputs in requests)
    names = ["encode_image", "encode_text", "search_by_embedding", "search_by_image"]
    names += ["search_by_text", "search_by_text_and_image"]
    assert rows == [(name, n) for name in names for n in (1, 8)]
    for answer in run(requests):
        assert "error" not in answer


def test_a_version_is_never_replaced_nor_half_written(searcher, exports, tmp_path, monkeypatch):
    base = tmp_path / "m"
    shutil.copytree(exports["brute_force"].parent, base)
    first = base / "1"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="1 exists, .* the next free one is 2"):
        export_saved_model(searcher, base, 1)
    assert before == {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}

    (base / "batching_parameters.txt").write_text("max_batch_size { value: 8 }")
    (base / "2.partial" / "variables").mkdir(parents=True)  # of an export that was killed
    seen = []

    def fail(folder, *arguments):
        seen.append([path.name for path in base.iterdir() if path.name.isdecimal()])
        assert (folder / "saved_model.pb").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(serving, "_write_warm_up", fail)
        with pytest.raises(KeyboardInterrupt):
            export_saved_model(searcher, base, 2)
    assert seen == [["1"]] and not (base / "2").exists() and not (base / "2.partial").exists()

    export_saved_model(searcher, base, 2)
    assert (base / "2" / "saved_model.pb").exists()
    assert "value: 8" in (base / "batching_parameters.txt").read_text()  # a user's own


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


def test_a_model_alone_has_no_gallery_and_not_every_folder_is_a_name(searcher, tmp_path):
    with pytest.raises(ValueError, match="the model's name in URLs .* got 'my \"model\"'"):
        export_saved_model(searcher, tmp_path / 'my "model"', 1)
    with pytest.raises(ValueError, match="give a Searcher, or index=None"):
        export_saved_model(searcher.model, tmp_path / "m", 1)
