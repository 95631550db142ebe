"""What `ServingClient` promises, over REST and gRPC alike: against a toy model whose answers can be
told by eye, an export, and servers that are busy, silent, late, or not TF Serving at all.

The models are served by `serving_server.py`, or by a real TensorFlow Serving, REST at
MMRET_TF_SERVING=host:port and gRPC at the port below it, started with the output of
`serving_models.py`: `docker run -p 8500:8500 -p 8501:8501 -v FOLDER:/models tensorflow/serving
--model_config_file=/models/models.config`.
"""

import base64
import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from PIL import Image
from serving.serving_models import IDS, NOT_AN_IMAGE, picture
from serving.serving_server import Model, Refusal
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service

from mmret_tf.data.decoders.clips import encode_frames
from mmret_tf.data.decoders.sounds import encode_wav
from mmret_tf.serving import ServingClient


@pytest.fixture(params=["rest", "grpc"])
def protocol(request):
    return request.param


@pytest.fixture
def connect(protocol):
    """Makes clients, which are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(address, **options):
            options = {"model": "toy", "protocol": protocol, "timeout": 5.0, **options}
            return stack.enter_context(ServingClient(address, **options))

        yield make


@pytest.fixture
def client(connect, server, protocol):
    return connect(server[protocol])


# What comes back


def test_a_search_gives_ids_scores_and_captions(client):
    results = client.search("红色的圆")  # 12 bytes
    assert [result.rank for result in results] == [1, 2, 3]
    assert [result.id for result in results] == IDS
    assert [result.score for result in results] == [12.0, 4.0, -12.0]
    assert [result.item["id"] for result in results] == IDS
    captions = [result.item["captions"] for result in results]
    assert captions == [["红色的圆"], ["two", "lines"], []]
    assert "红色的圆" in repr(results)


def test_text_image_and_both_ask_different_signatures(client):
    assert client.search("abc")[0].score == 3
    assert client.search(image=b"12345")[0].score == 500
    assert client.search("abc", b"12345")[0].score == 4
    assert client.search("abc", b"12345", text_weight=1)[0].score == 3
    assert client.search("abc", b"12345", text_weight=0.25)[0].score == 4.5


def test_scores_are_float32_however_they_came(client):
    score = client.search("0123456789")[1].score
    assert score == pytest.approx(10 / 3, rel=1e-6) and score == np.float32(score)


def test_k_cuts_and_never_adds(client):
    assert [result.id for result in client.search("a", k=2)] == IDS[:2]
    assert [result.id for result in client.search("a", k=np.int64(50))] == IDS


def test_texts_are_embedded_in_order(client):
    embeddings = client.encode("text", ["a", "红", "abcd"])
    assert embeddings.dtype == np.float32
    expected = [[1, 97, 97, 1], [3, 0xE7, 0xA2, 1 / 3], [4, 97, 100, 0.25]]
    assert np.array_equal(embeddings, np.array(expected, np.float32))


def test_infinity_arrives(client):
    assert client.encode("text", [""]).tolist() == [[0, 0, 0, np.inf]]


def test_bytes_arrive_as_they_are(client):
    embeddings = client.encode("image", [b"\x00\xff\xfe\x00", b"\xc3", b'{"b64": 1}\n'])
    assert embeddings[:, :3].tolist() == [[4, 0, 0], [1, 0xC3, 0xC3], [11, ord("{"), ord("\n")]]


def test_a_megabyte_passes_both_ways(client):
    assert client.encode("image", [b"x" * 6_000_000])[0, 0] == 6_000_000
    assert client.search("红" * 2_000_000)[0].item["captions"] == ["红" * 2_000_000]


def test_integer_ids_stay_integers(connect, protocol, server):
    results = connect(server[protocol], model="integers").search("a")
    assert [result.id for result in results] == [7, -1, 2**40]
    assert {type(result.id) for result in results} == {int}


def test_an_export_answers_as_the_searcher_does(connect, protocol, server, searcher):
    client, encoder = connect(server[protocol], model="small"), searcher.encoder
    texts = ["a red circle", "红色的圆", "", "zzz"]
    pictures = [picture(0), picture(1, format="JPEG")]
    for found, right in [
        (client.encode("text", texts), encoder.encode_texts(texts)),
        (client.encode("image", pictures), encoder.encode_images(pictures)),
    ]:
        np.testing.assert_allclose(found, right, atol=1e-5)
    for query in (
        *({"text": text, "k": 5} for text in texts),
        *({"image": image, "k": 7} for image in pictures),
        {"text": texts[1], "image": pictures[1], "k": 7},
        {"text": texts[1], "image": pictures[1], "k": 7, "text_weight": 0.25},
    ):
        found, right = client.search(**query), searcher.search(**query)
        assert [result.id for result in found] == [result.id for result in right]
        scores = [result.score for result in right]
        np.testing.assert_allclose([result.score for result in found], scores, atol=1e-5)
        assert found[0].item["captions"] == right[0].item["captions"]
    with pytest.raises(ValueError, match=NOT_AN_IMAGE):
        client.search(image=b"a string")
    assert len(client.search("a red circle", k=50)) == 7  # the k of the export


def test_one_client_serves_many_threads(client):
    texts = ["x" * length for length in range(1, 41)]
    with ThreadPoolExecutor(8) as pool:
        embeddings = pool.map(lambda text: client.encode("text", [text])[0, 0], texts)
        assert list(embeddings) == list(range(1, 41))


# What is sent, and servers that do not answer


class Script:
    """A server of either protocol that treats each request as the next word says.

    "ok" answers a row `[1.0]` for each row of input, "other" the outputs of another model. "busy"
    and HTTP's statuses refuse, "silence" waits until the test is over, "break" ends the connection.
    The server listens after `delay` seconds; before, it holds its port and refuses connections.
    """

    def __init__(self, protocol, *words, delay=0.0):
        self.words = list(words)
        self.signatures, self.inputs = [], []  # of each request; bytes, str or numbers
        self.over = threading.Event()
        self.port = socket.socket()
        self.port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.port.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.port.getsockname()[1]}"
        self.stop = None
        start = self.start_rest if protocol == "rest" else self.start_grpc
        self.timer = threading.Timer(delay, start)
        self.timer.start()
        if not delay:
            self.timer.join()

    def next(self, signature, inputs):
        self.signatures.append(signature)
        self.inputs.append(inputs)
        word = self.words.pop(0)
        if word == "silence":
            self.over.wait(30)
        return word

    def close(self):
        self.over.set()
        self.timer.cancel()
        self.timer.join()
        if self.stop:
            self.stop()
        self.port.close()

    def start_rest(self):
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                inputs = {
                    name: [base64.b64decode(v["b64"]) if isinstance(v, dict) else v for v in rows]
                    for name, rows in body["inputs"].items()
                }
                word = script.next(body["signature_name"], inputs)
                if word in ("break", "silence"):
                    self.close_connection = True
                    return
                row_counts = [len(rows) for rows in inputs.values()]
                answers = {
                    "ok": {"outputs": [[1.0]] * row_counts[0]},
                    "other": {"outputs": {"classes": [[1]], "labels": [["x"]]}},
                }
                status = {"ok": 200, "other": 200, "busy": 503}.get(word) or int(word)
                content = json.dumps(answers.get(word, {"error": "busy"})).encode()
                self.send_response(status)
                self.send_header("Retry-After", "20")  # to be ignored
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = self.port
        server.server_address = self.port.getsockname()
        server.server_activate()
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.stop = server.shutdown

    def start_grpc(self):
        script = self

        class Service(prediction_service.PredictionServiceServicer):
            def Predict(self, request, context):
                inputs = {key: tf.make_ndarray(v).tolist() for key, v in request.inputs.items()}
                if "text" in inputs:  # tensors do not tell texts from bytes
                    inputs["text"] = [text.decode() for text in inputs["text"]]
                word = script.next(request.model_spec.signature_name, inputs)
                if word not in ("ok", "other"):
                    context.abort(grpc.StatusCode.UNAVAILABLE, word)
                answer = predict_pb2.PredictResponse()
                name = "embedding" if word == "ok" else "classes"
                rows = [[1.0]] * len(next(iter(inputs.values())))
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(rows))
                return answer

        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 1)]
        server = grpc.server(ThreadPoolExecutor(2), options=options)
        prediction_service.add_PredictionServiceServicer_to_server(Service(), server)
        server.add_insecure_port(self.address)
        server.start()
        self.stop = lambda: server.stop(None).wait()


@pytest.fixture
def script(protocol):
    with contextlib.ExitStack() as stack:

        def make(*words, delay=0.0):
            return stack.enter_context(contextlib.closing(Script(protocol, *words, delay=delay)))

        yield make


@contextlib.contextmanager
def within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def test_rows_are_sent_in_batches(connect, script):
    server = script(*["ok"] * 4)
    client = connect(server.address)
    assert client.encode("text", list("abcde"), batch_size=2).shape == (5, 1)
    assert [len(inputs["text"]) for inputs in server.inputs] == [2, 2, 1]
    assert client.encode("image", [b"1", b"2"]).shape == (2, 1)
    assert server.inputs[3] == {"image": [b"1", b"2"]}


def test_short_forms_name_their_modality(connect, script):
    server = script(*["ok"] * 4)
    client = connect(server.address)
    assert client.encode_texts(["a", "红"], batch_size=1).tolist() == [[1.0], [1.0]]
    assert client.encode_images([b"1", b"2"], batch_size=1).tolist() == [[1.0], [1.0]]
    assert server.inputs == [
        {"text": ["a"]},
        {"text": ["红"]},
        {"image": [b"1"]},
        {"image": [b"2"]},
    ]
    assert server.signatures == ["encode_text"] * 2 + ["encode_image"] * 2


def test_other_modalities_go_by_their_names(connect, script, tmp_path):
    server = script("ok", *["other"] * 3)
    client = connect(server.address)
    path = tmp_path / "a.num"
    path.write_bytes(b"5")
    assert client.encode("number", [path, b"6"]).shape == (2, 1)
    for query in (
        {"number": path},
        {"number": b"6", "text": "a", "text_weight": 0.25},
        {"number": b"6", "image": b"1"},
    ):
        with pytest.raises(ConnectionError, match="outputs"):
            client.search(**query)
    assert server.inputs == [
        {"number": [b"5", b"6"]},
        {"number": [b"5"]},
        {"text": ["a"], "number": [b"6"], "text_weight": [0.25]},
        {"image": [b"1"], "number": [b"6"], "image_weight": [-1.0]},
    ]
    assert server.signatures == [
        *("encode_number", "search_by_number"),
        *("search_by_text_and_number", "search_by_image_and_number"),
    ]


def test_sounds_and_clips_are_sent_as_the_graph_decodes_them(connect, script, tmp_path):
    soundfile = pytest.importorskip("soundfile", reason='needs pip install "mmret_tf[audio]"')
    server = script(*["ok"] * 2, "other", "other")
    client = connect(server.address)
    samples = np.rint(9999 * np.sin(np.arange(2000) / 9)).astype(np.int16)
    wav = encode_wav(samples, 8000)
    (tmp_path / "a.wav").write_bytes(wav)
    soundfile.write(tmp_path / "a.flac", samples, 8000)
    sounds = [
        tmp_path / "a.wav",
        tmp_path / "a.flac",
        wav,
        (samples, 8000),
        (samples / 32767, 8000),
    ]
    assert client.encode("audio", sounds).shape == (5, 1)
    assert server.inputs[0] == {"audio": [wav] * 5}

    frames = np.zeros((4, 20, 24, 3), np.uint8) + np.arange(0, 200, 50)[:, None, None, None]
    pictures = [Image.fromarray(frame) for frame in frames.astype(np.uint8)]
    (tmp_path / "folder").mkdir()
    for number, each in enumerate(pictures):
        each.save(tmp_path / "folder" / f"{number}.png")
    options = {"save_all": True, "append_images": pictures[1:], "duration": 100}
    pictures[0].save(tmp_path / "a.webp", lossless=True, **options)
    pictures[0].save(tmp_path / "a.gif", **options)
    clips = [tmp_path / "a.webp", tmp_path / "folder", frames, tmp_path / "a.gif"]
    assert client.encode("video", clips).shape == (4, 1)
    webp, folder, array, gif = server.inputs[1]["video"]
    assert webp == folder == array == encode_frames(frames)
    assert gif == (tmp_path / "a.gif").read_bytes()  # the graph itself decodes it

    with pytest.raises(ConnectionError, match="outputs"):
        client.search(audio=tmp_path / "a.flac")
    with pytest.raises(ConnectionError, match="outputs"):
        client.search("a tone", audio=wav, video=tmp_path / "a.webp", text_weight=0.25)
    assert server.inputs[2] == {"audio": [wav]}
    assert set(server.inputs[3]) == {"text", "audio", "video", "text_weight"}
    assert server.signatures[2:] == ["search_by_audio", "search_by_text_and_audio_and_video"]


WITHOUT_TENSORFLOW = """
import sys
import numpy as np
from mmret_tf.serving.client import ServingClient

sent = []
with ServingClient("localhost:1") as client:
    client._transport.predict = lambda name, inputs: sent.append(inputs) or (
        200, {"embedding": np.ones((len(next(iter(inputs.values()))), 1))}
    )
    client.encode("audio", sys.argv[1:3])
    client.encode("video", sys.argv[3:4])
    print("slow to import:", {"tensorflow", "keras"} & set(sys.modules))
    sys.modules["tensorflow"] = None  # as where it is not installed
    client.encode("video", sys.argv[4:5])
print(*(content[:4] for inputs in sent for contents in inputs.values() for content in contents))
"""


def test_sounds_and_clips_are_sent_without_tensorflow(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason='needs pip install "mmret_tf[audio]"')
    names = [str(tmp_path / name) for name in ("a.wav", "a.flac", "a.webp", "a.gif")]
    for name in names[:2]:
        soundfile.write(name, np.zeros(100), 8000, subtype="PCM_16")
    pictures = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for name in names[2:]:
        pictures[0].save(name, save_all=True, append_images=pictures[1:])
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "slow to import: set()",
        r"b'RIFF' b'RIFF' b'\x89PNG' b'\x89PNG'",
    ]


def test_files_and_bytes_are_sent_as_they_are_and_pixels_as_png(connect, script, tmp_path):
    server = script("ok")
    path = tmp_path / "红.jpg"
    path.write_bytes(b"\xff\xd8 whatever \x00")
    levels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    turned = Image.new("RGB", (5, 2))
    turned.info["exif"] = sideways.tobytes()
    images = [
        *(path, str(path), path.read_bytes()),
        *(Image.fromarray(levels), levels, levels[:, :, :3] + 0.6, levels[:, :, 0]),
        *(Image.fromarray(levels[:, :, 0]), turned),
    ]
    connect(server.address).encode("image", images)
    *encoded, alpha, array_alpha, rgb, grey_array, grey, upright = server.inputs[0]["image"]
    assert encoded == [path.read_bytes()] * 3
    pixels = [np.asarray(Image.open(io.BytesIO(png))) for png in (alpha, array_alpha, rgb)]
    assert np.array_equal(pixels[1], levels)
    clear = levels[:, :, 3:] / 255  # a Pillow image is laid over white, as Pillow has it
    over_white = levels[:, :, :3] * clear + 255 * (1 - clear)
    assert pixels[0].shape == (2, 3, 3) and np.abs(pixels[0] - over_white).max() <= 1
    assert np.array_equal(pixels[2], levels[:, :, :3] + 1)
    for png in (grey_array, grey):
        image = Image.open(io.BytesIO(png)).convert("RGB")
        assert np.array_equal(np.asarray(image)[:, :, 1], levels[:, :, 0])
    assert Image.open(io.BytesIO(upright)).size == (2, 5)


def test_a_busy_server_is_asked_again(connect, script):
    server = script("busy", "busy", "ok")
    with within(3):
        assert connect(server.address, retries=2).encode("text", ["a"]).tolist() == [[1.0]]
    assert server.inputs == [{"text": ["a"]}] * 3


def test_a_large_request_is_sent_again_too(connect, script):
    server = script("busy", "ok")
    picture = b"x" * 1_000_000
    assert connect(server.address).encode("image", [picture]).tolist() == [[1.0]]
    assert server.inputs == [{"image": [picture]}] * 2


@pytest.mark.parametrize("protocol", ["rest"], indirect=True)
def test_statuses_of_a_busy_server_over_rest(connect, script):
    for words in (["429", "502", "ok"], ["504", "break", "ok"]):
        server = script(*words)
        assert connect(server.address, retries=2).encode("text", ["a"]).tolist() == [[1.0]]
        assert len(server.inputs) == 3
    with pytest.raises(ConnectionError, match="no answer in 2 tries: busy"):
        connect(script("502", "429").address, retries=1).encode("text", ["a"])
    server = script("500", "ok")
    with pytest.raises(ConnectionError, match="server failed, or is not TF Serving: busy"):
        connect(server.address).encode("text", ["a"])
    assert len(server.inputs) == 1


def test_a_server_that_stays_busy_is_given_up(connect, script):
    for retries, tries in enumerate(["1 try", "2 tries", "3 tries"]):
        server = script(*["busy"] * 5)
        with within(3), pytest.raises(ConnectionError) as caught:
            connect(server.address, retries=retries).encode("text", ["a"])
        for words in (f"no answer in {tries}: ", server.address, "busy", "8501"):
            assert words in str(caught.value)
        assert len(server.inputs) == retries + 1


def test_a_server_that_starts_late_is_found(connect, script):
    server = script("ok", delay=0.1)
    assert connect(server.address).encode("text", ["a"]).tolist() == [[1.0]]


def test_a_client_finds_a_server_again_that_was_down(connect, script):
    server = script("ok", delay=0.6)
    client = connect(server.address, retries=1)
    with pytest.raises(ConnectionError):
        client.encode("text", ["a"])
    server.timer.join()
    with within(3):
        while True:
            with contextlib.suppress(ConnectionError):
                assert client.encode("text", ["a"]).tolist() == [[1.0]]
                break
            time.sleep(0.05)


def test_nothing_at_the_address(connect, script):
    server = script(delay=60)
    with within(5), pytest.raises(ConnectionError) as caught:
        connect(server.address, retries=2).search("a")
    for words in (server.address, "3 tries", "refused", "TF Serving", "8501 for REST"):
        assert words in str(caught.value)


def test_a_silent_server_is_waited_for_once(connect, script):
    server = script("silence", "ok")
    with within(2), pytest.raises(TimeoutError, match="no answer in 0.3 seconds") as caught:
        connect(server.address, timeout=0.3).encode("text", ["a"])
    assert server.address in str(caught.value)
    assert len(server.inputs) == 1


def test_outputs_of_another_model(connect, script):
    with pytest.raises(ConnectionError, match=r"outputs \[.*classes.* instead of \['captions'"):
        connect(script("other").address).search("a")


@pytest.mark.parametrize("protocol", ["rest"], indirect=True)
@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize(
    "page",
    [
        b"<html>Welcome</html>",
        b'{"detail": "Not Found"}',
        b"[1, 2]",
        b"\xff\xfe\xff",
        b'{"outputs": [[1, 2], [3]]}',
        b"",
    ],
)
def test_a_server_that_is_not_tf_serving(connect, page, status):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with pytest.raises(ConnectionError, match=f"is not TF Serving: {status}"):
        connect(f"127.0.0.1:{server.server_port}").encode("text", ["a"])
    server.shutdown()
    server.server_close()


def test_the_port_of_the_other_protocol(connect, protocol, server):
    other = server["grpc" if protocol == "rest" else "rest"]
    with within(5), pytest.raises(ConnectionError, match="8501 for REST, 8500 for gRPC"):
        connect(other, retries=1, timeout=2).search("a")


@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
def test_a_grpc_server_without_the_service(connect):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ConnectionError, match="is not TF Serving"):
        connect(f"127.0.0.1:{port}").search("a")
    server.stop(None)


# Refusals of the server


def test_a_broken_picture_is_refused_and_the_next_request_answered(client, server, protocol):
    for ask in (
        lambda: client.search(image=b"bad picture"),
        lambda: client.encode("image", [b"good", b"bad picture"]),
    ):
        with pytest.raises(ValueError) as caught:
            ask()
        assert f"refused by the server: {NOT_AN_IMAGE} ({server[protocol]}, " in str(caught.value)
        assert client.encode("image", [b"good"])[0, 0] == 4


def test_no_such_model_version_or_signature(connect, server, protocol):
    address = server[protocol]
    for options, message in [
        (
            {"model": "cat"},
            f"not found .*; check the server's --model_name .*{address}, model 'cat'",
        ),
        ({"version": 2}, f"not found .* and its versions .*{address}, model 'toy', version 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            connect(address, **options).search("a")
    assert connect(address, version=1).search("a")[0].score == 1
    with pytest.raises(ValueError, match=f"no signature 'encode_text'; .*{address}, model 'int"):
        connect(address, model="integers").encode("text", ["a"])


# Requests that are never sent


def test_bad_arguments_are_explained(connect, script, tmp_path):
    server = script()  # it would fail at the first request
    client = connect(server.address)
    for ask, message in [
        (lambda: client.search(), "a query needs text, image, or several of them; got none"),
        (lambda: client.search(5), "text must be a string; got 5"),
        (lambda: client.search(["a"]), r"text must be a string; got \['a'\]"),
        (lambda: client.search("a", k=0), "k must be an integer of at least 1; got 0"),
        (lambda: client.search("a", k=True), "k must be an integer of at least 1; got True"),
        (lambda: client.search("a", k=1.5), "k must be an integer of at least 1; got 1.5"),
        (lambda: client.search("a", text_weight=2), "text_weight must be from 0 to 1; got 2"),
        (lambda: client.search("a", text_weight=np.nan), "text_weight must be .* got nan"),
        (lambda: client.search(image="gone.png"), "gone.png: No such file"),
        (lambda: client.search(image=tmp_path), f"{tmp_path}: Is a directory"),
        (lambda: client.search(image=np.zeros((2, 3, 5))), r"an image array .* got \(2, 3, 5\)"),
        (lambda: client.search(image=np.full((2, 2), 300)), "from 0 to 255; got 300 to 300"),
        (lambda: connect(server.address, retries=5), "retries must be .* from 0 to 4; got 5"),
        (lambda: connect(server.address, retries=-1), "retries must be .* from 0 to 4; got -1"),
        (lambda: client.encode("text", ["a"], 0), "batch_size must be .* at least 1; got 0"),
        (lambda: client.encode("text", "a"), "expected a list of texts, of at least one"),
        (lambda: client.encode("text", ["a", 5]), "a text must be a string; got 5"),
        (lambda: client.encode("text", []), "of at least one"),
        (lambda: client.encode("image", []), "of at least one"),
        (lambda: client.encode("image", b"a"), "expected a list of images"),
        (lambda: client.encode("image", tmp_path / "a.png"), "expected a list of images"),
        (lambda: client.encode("image", [tmp_path / "a.png"]), "a.png: No such file"),
        (lambda: client.search(audio="gone.wav"), "gone.wav: No such file"),
        (lambda: client.search(audio=tmp_path), f"^{tmp_path}: Is a directory$"),
        (lambda: client.search(number=tmp_path), f"^{tmp_path}: Is a directory$"),
        (lambda: client.search(number=5), "expected a path or encoded bytes; got a int"),
        (lambda: client.search(audio=5), "a sound must be a path, .* got a int"),
        (lambda: client.search(video="gone.gif"), "gone.gif: No such file"),
        (lambda: client.search(video=tmp_path), f"^{tmp_path}: the folder holds no files$"),
        (lambda: client.search(video=bytes(257) + b"ustar"), "the source: not a whole clip"),
        (lambda: client.search(video=np.zeros(3)), "frames must be an array"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask()
    assert server.inputs == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"protocol": "http"}, 'protocol must be "rest" or "grpc"; got \'http\''),
        ({"address": "http://localhost:8501"}, "without http://; got 'http://localhost:8501'"),
    ],
)
def test_bad_settings_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        ServingClient(**options)


@pytest.mark.parametrize("missing", ["grpc", "tensorflow_serving.apis"])
def test_grpc_that_is_not_installed(monkeypatch, missing, server):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "mmret_tf\[serving\]"'):
        ServingClient(server["grpc"], "toy", "grpc")
    with ServingClient(server["rest"], "toy") as client:
        assert client.search("a")[0].score == 1


def test_the_end_of_a_with_block_closes(connect, script, monkeypatch):
    closed = []
    client = connect(script().address)
    monkeypatch.setattr(client._transport, "close", lambda: closed.append(True))
    with client as same:
        assert same is client and not closed
    assert closed == [True]


def test_the_client_needs_neither_tensorflow_nor_keras_and_is_imported_quickly():
    code = """
import sys, time
start = time.process_time()
import mmret_tf.serving.client
print(time.process_time() - start, *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    assert not {"tensorflow", "keras", "scann", "mmret_tf.models"} & set(modules)
    assert float(seconds) < 0.5


# The stand-in for TF Serving


def test_the_server_speaks_as_the_documentation_says(server):
    url = f"http://{server['rest']}/v1/models/toy"
    rows = requests.post(f"{url}:predict", json={"instances": ["ab", {"b64": "YQ=="}]}).json()
    assert rows["predictions"][1] == {
        "ids": IDS,
        "scores": [1.0, pytest.approx(1 / 3), -1.0],
        "captions": ["a", "two\nlines", ""],
    }
    request = {"signature_name": "encode_text", "inputs": {"text": ["ab"]}}
    assert requests.post(f"{url}:predict", json=request).json() == {"outputs": [[2, 97, 98, 0.5]]}
    (state,) = requests.get(url).json()["model_version_status"]
    assert (state["version"], state["state"]) == ("1", "AVAILABLE")
    metadata = requests.get(f"{url}/metadata").json()["metadata"]["signature_def"]
    assert metadata["signature_def"]["encode_text"]["inputs"]["text"]["dtype"] == "DT_STRING"
    for body in ("[", "{}", '{"inputs": {"image": ["a"]}}', '{"inputs": {"text": [5]}}'):
        response = requests.post(f"{url}:predict", data=body)
        assert (response.status_code, list(response.json())) == (400, ["error"])


def test_the_server_takes_a_newer_version(toys, tmp_path):
    folder = tmp_path / "toy"
    shutil.copytree(toys / "toy", folder)
    (folder / "11.partial").mkdir()
    model = Model(folder)
    assert model.get(1).number == 1
    shutil.copytree(folder / "1", tmp_path / "10")
    (tmp_path / "10").rename(folder / "10")
    assert model.get(None).number == model.get(10).number == 10
    with pytest.raises(Refusal, match="Servable not found"):
        model.get(1)


def test_the_server_does_not_start_if_a_warm_up_request_fails(toys, tmp_path):
    folder = tmp_path / "toy"
    shutil.copytree(toys / "toy", folder)
    warm_up = folder / "1" / "assets.extra" / "tf_serving_warmup_requests"
    warm_up.parent.mkdir()
    with tf.io.TFRecordWriter(str(warm_up)) as file:
        for content in (b"good", b"bad"):
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = "encode_image"
            request.inputs["image"].CopyFrom(tf.make_tensor_proto([content]))
            log = prediction_log_pb2.PredictLog(request=request)
            file.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    with pytest.raises(Refusal, match=NOT_AN_IMAGE):
        Model(folder)
