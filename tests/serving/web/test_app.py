"""The REST interface: what it answers, and what it refuses."""

import io
import json
import re
import shutil
from urllib.parse import quote

import numpy as np
import pytest
import requests
from PIL import Image

import mmret_tf as mm
from mmret_tf.data.decoders import video
from mmret_tf.data.decoders.audio import load_audio
from mmret_tf.serving.web.service import SearchService

from .conftest import CLIPS, RATE, TONES, make_tone, save_clip, serving


def search(address, **query):
    answer = requests.post(f"{address}/api/search", json=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def colours(answer):
    return [result["attributes"]["colour"] for result in answer["results"]]


def picture(colour, format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (50, 40), colour).save(file, format)
    return file.getvalue()


def send(address, content, path="/api/search", **fields):
    return requests.post(address + path, data=fields, files={"image": ("图.png", content)})


def test_a_text_finds_in_both_languages(address):
    for text in ("a red picture", "红色的图片"):
        answer = search(address, text=text, k=2)
        assert colours(answer) == ["red", "red"]
        assert [result["rank"] for result in answer["results"]] == [1, 2]
        first = answer["results"][0]
        assert first["captions"] == ["a red picture", "红色的图片"] and first["shows"] == "image"
        assert first["score"] > 0.5 and answer["remark"] == "" and answer["size"] == 12
        assert "vector" not in first and "sources" not in first  # paths are nobody's business


def test_the_answers_are_those_of_the_searcher(address, service):
    query = {"texts": {"a red picture": 1, "a blue picture": -0.5}, "where": {"size": {"$lt": 2}}}
    expected = service.searcher.search(**query, k=4, with_vectors=True)
    found = search(address, **query, k=4, with_vectors=True)["results"]
    assert [each["id"] for each in found] == [each.id for each in expected]
    np.testing.assert_allclose([each["score"] for each in found], [e.score for e in expected])
    np.testing.assert_array_equal([each["vector"] for each in found], [e.vector for e in expected])


def test_a_minus_steers_away(address):
    for text in ("a picture -red", "-red", "图片 －红色"):
        assert colours(search(address, text=text, k=12))[-2:] == ["red", "red"]
    reds = [
        search(address, text=text, k=1, where={"colour": "red"})["results"][0]["score"]
        for text in ("a picture", "a picture -red")
    ]
    assert reds[1] < reds[0] - 0.2


def test_a_picture_finds_alone_and_with_a_text(address):
    assert colours(send(address, picture("red"), k=2).json()) == ["red", "red"]
    by_share = [
        send(address, picture("red"), text="a blue picture", text_weight=share, k=1).json()
        for share in ("0", "1")
    ]
    assert [colours(each) for each in by_share] == [["red"], ["blue"]]
    empty = {"text": "", "texts": "", "k": "", "where": ""}  # as a form sends them
    assert len(send(address, picture("red"), **empty).json()["results"]) == 12
    where = json.dumps({"colour": {"$in": ["green", "blue"]}})
    assert set(colours(send(address, picture("red"), where=where).json())) == {"green", "blue"}


def test_similar_items_and_their_pictures_are_found_by_any_id(address, web_gallery):
    for id in web_gallery.ids[:2]:
        assert "/" in id and "?" in id and "红" in id
        name = quote(id, safe="")
        found = requests.get(f"{address}/api/similar/{name}", params={"k": 1}).json()
        assert colours(found) == ["red"] and found["results"][0]["id"] != id
        assert colours(search(address, similar_to=id, k=1)) == ["red"]
        item = requests.get(f"{address}/api/items/{name}").json()
        assert item["id"] == id and item["attributes"]["colour"] == "red"
        thumbnail = requests.get(f"{address}/api/thumbnails/{name}", params={"side": 64})
        image = Image.open(io.BytesIO(thumbnail.content))
        assert (image.format, image.size) == ("JPEG", (64, 64))
        assert image.getpixel((32, 32))[0] > 200 > 60 > image.getpixel((32, 32))[2]


def test_embeddings_are_those_of_the_encoder(address, web_model):
    texts = ["a red picture", "红色"]
    answer = requests.post(f"{address}/api/embed", json={"texts": texts}).json()
    expected = web_model.encode_texts(texts)
    np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-6)
    content = picture("blue")
    answer = send(address, content, "/api/embed").json()
    np.testing.assert_allclose(answer["embeddings"], web_model.encode_images([content]), atol=1e-6)
    assert answer["dim"] == web_model.embedding_dim


def test_the_page_is_told_what_the_gallery_holds(address):
    gallery = requests.get(f"{address}/api/gallery").json()
    assert gallery["run"] == "colours" and gallery["size"] == 12
    assert gallery["modalities"] == ["image", "text"]
    colour, size = gallery["attributes"]
    assert colour == {
        "name": "colour",
        "values": ["black", "blue", "green", "red", "white", "yellow"],
    }
    assert size == {"name": "size", "min": 1, "max": 2}
    assert gallery["examples"][0] == "a red picture" and "红色的图片" in gallery["examples"]


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({}, 422, "a query needs text, image"),
        ({"text": None}, 422, "a query needs text, image"),
        ({"text": 5}, 422, "text: Input should be a valid string"),
        ({"text": "a" * 3000}, 422, "text: String should have at most 2000 characters"),
        ({"text": "a", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"text": "a", "k": 10**30}, 422, "k: "),
        ({"text": "a", "text_weight": 2}, 422, "text_weight: Input should be less than or equal"),
        ({"texts": {"a": 0}}, 422, "texts must map strings to weights"),
        ({"text": "a", "where": {"wheels": 4}}, 422, "no item has the attribute 'wheels'"),
        ({"text": "a", "where": {"size": {"$near": 1}}}, 422, r"\$near"),
        ({"text": "a", "where": [1]}, 422, "where: Input should be an object"),
        ({"text": "a", "colour": "red"}, 422, "colour: Extra inputs are not permitted"),
        ({"similar_to": "gone"}, 404, "no item has the id 'gone'"),
        ({"similar_to": "../../etc/passwd"}, 404, "no item has the id"),
    ],
)
def test_queries_that_are_refused(address, query, status, message):
    answer = requests.post(f"{address}/api/search", json=query)
    assert answer.status_code == status and re.search(message, answer.json()["error"]), answer.text


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/items/gone", 404, "no item has the id 'gone'"),
        ("/api/items/", 404, "no item has the id ''"),
        ("/api/thumbnails/..%2F..%2Fetc%2Fpasswd", 404, "no item has the id '../../etc/passwd'"),
        ("/api/thumbnails/%2Fetc%2Fpasswd", 404, "no item has the id '/etc/passwd'"),
        ("/api/thumbnails/%FF%FE", 404, "no item has the id"),
        ("/api/thumbnails/gone?side=9", 422, "side: Input should be greater than or equal to 32"),
        ("/api/similar/gone", 404, "no item has the id 'gone'"),
        ("/api/search", 405, "Method Not Allowed"),
        ("/nowhere", 404, "Not Found"),
    ],
)
def test_addresses_that_lead_nowhere(address, path, status, message):
    answer = requests.get(address + path)
    assert answer.status_code == status and message in answer.json()["error"], answer.text


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"{", "application/json", 422, "Invalid JSON"),
        (b"[" * 100_000, "application/json", 422, "Invalid JSON"),
        (b'{"text": "\xff"}', "application/json", 422, "Invalid JSON"),
        (b'{"text": "\\ud800"}', "application/json", 422, "Invalid JSON"),
        (b"text=a", "application/x-www-form-urlencoded", 415, "must be application/json or"),
        (b"--x", "multipart/form-data", 400, "boundary"),
        (b"rubbish", "multipart/form-data; boundary=x", 400, ""),
        (b"", "", 415, "must be application/json or"),
    ],
)
def test_bodies_that_are_refused(address, content, kind, status, message):
    for path in ("/api/search", "/api/embed"):
        answer = requests.post(address + path, data=content, headers={"Content-Type": kind})
        assert answer.status_code == status and message in answer.json()["error"], answer.text


def test_texts_or_a_picture_are_embedded_and_not_both(address):
    for answer in (
        requests.post(f"{address}/api/embed", json={"texts": []}),
        send(address, picture("red"), "/api/embed", texts='["red"]'),
    ):
        assert answer.status_code == 422 and answer.json()["error"] == "give texts or a file"


@pytest.mark.parametrize("path", ["/api/search", "/api/embed"])
def test_pictures_that_cannot_be_read_fail_alone(address, path):
    for content in (b"", b"rubbish", picture("red")[:60], b"GIF89a"):
        answer = send(address, content, path)
        assert answer.status_code == 422 and answer.json()["error"], answer.text
    assert send(address, picture("red"), path).status_code == 200
    answer = requests.post(address + path, files={"file": b"x"})
    assert answer.status_code == 422 and "must be named 'image'" in answer.json()["error"]


def test_a_gallery_of_texts_has_drawn_thumbnails_and_says_what_it_does_not_know(address):
    assert "knows no word" in search(address, text="zxqv")["remark"]
    assert "empty query" in search(address, text="")["remark"]
    nothing = search(address, text="a", where={"size": {"$gt": 9}})
    assert nothing["results"] == []


def test_the_interface_is_described_and_uses_no_other_host(address):
    description = requests.get(f"{address}/openapi.json").json()
    bodies = description["paths"]["/api/search"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"application/json", "multipart/form-data"}
    for path in ("/docs", "/"):
        page = requests.get(address + path)
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', page.text)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "POST /api/search" in requests.get(f"{address}/docs").text


def test_figures_for_prometheus_and_health(address):
    search(address, text="a")
    figures = requests.get(f"{address}/metrics").text
    assert re.search(r'mmret_requests_total\{path="/api/search",status="200"\} [1-9]', figures)
    assert "mmret_gallery_items 12.0" in figures and "mmret_batch_size_count" in figures
    assert requests.get(f"{address}/health").json() == {"status": "ok", "problem": ""}


def test_a_plain_text_stays_one_so_that_a_fusion_takes_it_beside_a_picture(
    address, service, monkeypatch
):
    asked = []
    search_batch = service.searcher.search_batch
    monkeypatch.setattr(
        service.searcher,
        "search_batch",
        lambda queries: asked.extend(queries) or search_batch(queries),
    )
    send(address, picture("red"), text="a blue  picture", k=1)
    send(address, picture("red"), text="a picture -red", k=1)
    assert asked[0]["text"] == "a blue picture" and "texts" not in asked[0]
    assert asked[1]["texts"] == {"a picture": 1, "red": -0.5} and "text" not in asked[1]


# Sounds and clips

LOW, RED = next(iter(TONES)), next(iter(CLIPS))


def send_files(address, path="/api/search", data=None, **files):
    files = {name: ("a", content) for name, content in files.items()}
    return requests.post(address + path, data=data, files=files)


def clip(colour=(240, 220, 20)):
    file = io.BytesIO()
    file.name = "a.webp"  # whose suffix names the format
    save_clip(file, colour)
    return file.getvalue()


QUERIES = {
    "a sound": {"audio": make_tone(300)},
    "a short sound": {"audio": make_tone(1000, 0.2)},
    "a clip": {"video": clip()},
    "both": {"audio": make_tone(700), "video": clip()},
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_files_find_what_the_searcher_finds(playing, playing_service, query):
    expected = playing_service.searcher.search(**query, k=6)
    answer = send_files(playing, **query).json()
    assert [each["id"] for each in answer["results"]] == [each.id for each in expected]
    scores = [each["score"] for each in answer["results"]]
    np.testing.assert_allclose(scores, [each.score for each in expected], atol=1e-5)
    expected = playing_service.searcher.search("a tone", **query, k=2, text_weight=0.75)
    mixed = send_files(
        playing, data={"text": "a tone", "text_weight": 0.75, "k": 2}, **query
    ).json()
    assert [each["id"] for each in mixed["results"]] == [each.id for each in expected]


def test_an_item_is_found_by_its_own_file(playing, playing_folder):
    for field, file, id in (("audio", "0.wav", LOW), ("video", "0.gif", RED)):
        content = (playing_folder / file).read_bytes()
        first = send_files(playing, **{field: content}).json()["results"][0]
        assert first["id"] == id and first["score"] == pytest.approx(1, abs=1e-4)


def test_other_formats_are_decoded(playing, playing_service, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    samples, rate = soundfile.read(io.BytesIO(make_tone(300)), dtype="int16")
    soundfile.write(tmp_path / "a.flac", samples, rate)
    first = send_files(playing, audio=(tmp_path / "a.flac").read_bytes()).json()["results"][0]
    assert first["id"] == LOW and first["score"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        ([("file", b"x")], 422, "'file': the file's field must be named 'audio' or 'video'"),
        ([("image", b"x")], 422, "'image': the file's field must be named 'audio' or 'video'"),
        ([("text", b"x")], 422, "'text': the file's field must be named 'audio' or 'video'"),
        ([("audio", make_tone(300))] * 2, 422, "audio: give one file of each modality"),
        ([("audio", b"")], 422, ""),
        ([("audio", b"RIFF")], 422, "not a WAV file"),
        ([("audio", make_tone(300)[:99])], 422, ""),
        ([("audio", b"fLaC" + bytes(99))], 422, "the source: not a whole sound: File contains"),
        ([("audio", b"ID3" + bytes(99))], 422, "the source: not a whole sound: Format not"),
        ([("audio", clip())], 422, ""),
        ([("video", b"")], 422, ""),
        ([("video", b"GIF89a")], 422, ""),
        ([("video", clip()[:200])], 422, "the source: not a whole clip"),
        ([("video", bytes(257) + b"ustar" + bytes(300))], 422, "not a whole clip"),
        ([("video", b"\x1a\x45\xdf\xa3" + bytes(99))], 422, ""),
        ([("video", make_tone(300))], 422, ""),
    ],
)
@pytest.mark.parametrize("path", ["/api/search", "/api/embed"])
def test_files_that_are_refused(playing, path, files, status, message):
    files = [(name, ("a", content)) for name, content in files]
    answer = requests.post(playing + path, files=files)
    assert answer.status_code == status and message in answer.json()["error"], answer.text
    assert "\n" not in answer.json()["error"] and len(answer.json()["error"]) < 300


def test_more_files_than_modalities_and_a_text_in_place_of_a_file(playing):
    files = [("audio", ("a", make_tone(300)))] * 9
    answer = requests.post(f"{playing}/api/search", files=files)
    assert answer.status_code == 400 and "Too many files" in answer.json()["error"]
    form = {"audio": (None, "low.wav"), "k": (None, "2")}  # as `curl -F audio=low.wav` sends it
    answer = requests.post(f"{playing}/api/search", files=form)
    assert answer.status_code == 422
    assert answer.json()["error"] == "audio: the field must hold a file, not a text"


def test_embeddings_of_sounds_and_clips_are_those_of_the_encoder(playing, playing_service):
    encoder = playing_service.searcher.encoder
    for name, content in (("audio", make_tone(300)), ("video", clip())):
        answer = send_files(playing, "/api/embed", **{name: content}).json()
        expected = encoder.encode(name, [content])
        np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-6)
    answer = send_files(playing, "/api/embed", audio=make_tone(300), video=clip())
    assert answer.status_code == 422 and answer.json()["error"] == "give texts or a file"


def test_what_an_item_shows_and_plays(playing):
    answers = send_files(playing, audio=make_tone(300)).json()["results"]
    found = {each["id"]: (each["shows"], each["plays"]) for each in answers}
    assert found == {
        **dict.fromkeys(TONES, ("audio", ["audio"])),
        **dict.fromkeys(CLIPS, ("video", ["video"])),
        "both": ("audio", ["audio", "video"]),
        "note": (None, []),
    }
    gallery = requests.get(f"{playing}/api/gallery").json()
    assert gallery["modalities"] == ["audio", "video", "text"]
    assert set(gallery["suffixes"]) == {"audio", "video"} and ".wav" in gallery["suffixes"]["audio"]


def media(address, id, headers=None, **parameters):
    url = f"{address}/api/media/{quote(id, safe='')}"
    return requests.get(url, params=parameters, headers=headers)


def test_media_can_be_decoded(playing):
    for id, modality in ((LOW, None), ("both", None), ("both", "audio")):
        answer = media(playing, id, modality=modality)
        assert answer.headers["content-type"] == "audio/wav" and "/" in LOW
        pitch = TONES.get(id, 700)
        samples = load_audio(answer.content, RATE, 1.0)
        np.testing.assert_allclose(samples, load_audio(make_tone(pitch), RATE, 1.0), atol=1e-4)
    for id, modality in ((RED, None), ("both", "video")):
        answer = media(playing, id, modality=modality)
        assert answer.headers["content-type"] == "image/webp"
        image = Image.open(io.BytesIO(answer.content))
        assert image.n_frames > 1 and image.info["loop"] == 0
        assert "max-age" in answer.headers["cache-control"]


def test_what_does_not_play_is_not_found(playing, address, web_gallery):
    for at, id, parameters in (
        (playing, "note", {}),
        (playing, LOW, {"modality": "video"}),
        (playing, LOW, {"modality": "smell"}),
        (address, web_gallery.ids[0], {}),
    ):
        answer = media(at, id, **parameters)
        assert answer.status_code == 404 and "plays" in answer.json()["error"]
    answer = media(playing, "../../etc/passwd")
    assert answer.status_code == 404 and "no item has the id" in answer.json()["error"]


def test_thumbnails_differ_and_are_no_grey_squares(playing):
    seen = set()
    for id in (*TONES, *CLIPS):
        answer = requests.get(f"{playing}/api/thumbnails/{quote(id, safe='')}", params={"side": 64})
        pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert pixels.std() > 5
        seen.add(pixels.tobytes())
    assert len(seen) == 4


def test_files_that_are_gone_or_damaged_play_not_and_search_still_answers(
    playing_folder, playing_service, tmp_path
):
    searcher = playing_service.searcher
    (tmp_path / "cut.wav").write_bytes(make_tone(300)[:60])
    shutil.copy(playing_folder / "0.gif", tmp_path / "whole.gif")
    items = [
        {"id": "gone", "sources": {"audio": [str(tmp_path / "gone.wav")], "text": ["gone"]}},
        {"id": "cut", "sources": {"audio": [str(tmp_path / "cut.wav")]}},
        {
            "id": "half",
            "sources": {
                "audio": [str(tmp_path / "cut.wav")],
                "video": [str(tmp_path / "gone.gif"), str(tmp_path / "whole.gif")],
            },
        },
    ]
    index = mm.BruteForceIndex.build(
        searcher.encoder.encode_texts(["a", "b", "c"]), ["gone", "cut", "half"]
    )
    with serving(SearchService(mm.Searcher(searcher.encoder, index, items))) as address:
        results = send_files(address, audio=make_tone(300)).json()["results"]
        assert {each["id"] for each in results} == {"gone", "cut", "half"}
        assert [media(address, id).status_code for id in ("gone", "cut")] == [404, 404]
        assert media(address, "half").headers["content-type"] == "image/webp"
        assert media(address, "half", modality="audio").status_code == 404
        for id in ("gone", "cut", "half"):
            assert requests.get(f"{address}/api/thumbnails/{id}").status_code == 200


def test_the_description_names_the_fields(playing):
    page = requests.get(f"{playing}/docs").text
    description = requests.get(f"{playing}/openapi.json").json()
    for path in ("/api/search", "/api/embed"):
        bodies = description["paths"][path]["post"]["requestBody"]["content"]
        form = bodies["multipart/form-data"]["schema"]["properties"]
        files = {name for name, each in form.items() if each.get("format") == "binary"}
        assert files == {"audio", "video"}
    assert "A file of the modality audio: .wav, .flac, .ogg, .mp3." in page
    assert "GET /api/media/{id}" in page


def test_no_clip_waits_for_a_graph(playing_service, tmp_path, monkeypatch):
    traced = []
    monkeypatch.setattr(video, "decode_video", lambda *arguments: traced.append(arguments))
    save_clip(tmp_path / "new.gif", (240, 220, 20))
    item = {"id": "new", "sources": {"video": [str(tmp_path / "new.gif")]}}
    assert playing_service.media(item)[0] == "image/webp"
    assert {len(playing_service.thumbnail(item, side)) > 500 for side in (32, 97, 1024)} == {True}
    assert traced == []


def test_the_page_may_play_sounds_of_its_own(playing):
    policy = requests.get(playing).headers["content-security-policy"]
    assert "media-src 'self'" in policy and "unsafe" not in policy
