"""Sounds and clips over REST: searching by them, embedding them, and what plays of an item."""

import io
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

LOW, RED = next(iter(TONES)), next(iter(CLIPS))


def send(address, path="/api/search", data=None, **files):
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
    answer = send(playing, **query).json()
    assert [each["id"] for each in answer["results"]] == [each.id for each in expected]
    scores = [each["score"] for each in answer["results"]]
    np.testing.assert_allclose(scores, [each.score for each in expected], atol=1e-5)
    expected = playing_service.searcher.search("a tone", **query, k=2, text_weight=0.75)
    mixed = send(playing, data={"text": "a tone", "text_weight": 0.75, "k": 2}, **query).json()
    assert [each["id"] for each in mixed["results"]] == [each.id for each in expected]


def test_an_item_is_found_by_its_own_file(playing, playing_folder):
    for field, file, id in (("audio", "0.wav", LOW), ("video", "0.gif", RED)):
        content = (playing_folder / file).read_bytes()
        first = send(playing, **{field: content}).json()["results"][0]
        assert first["id"] == id and first["score"] == pytest.approx(1, abs=1e-4)


def test_other_formats_are_decoded(playing, playing_service, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    samples, rate = soundfile.read(io.BytesIO(make_tone(300)), dtype="int16")
    soundfile.write(tmp_path / "a.flac", samples, rate)
    first = send(playing, audio=(tmp_path / "a.flac").read_bytes()).json()["results"][0]
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


def test_embeddings_are_those_of_the_encoder(playing, playing_service):
    encoder = playing_service.searcher.encoder
    for name, content in (("audio", make_tone(300)), ("video", clip())):
        answer = send(playing, "/api/embed", **{name: content}).json()
        expected = encoder.encode(name, [content])
        np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-6)
    answer = send(playing, "/api/embed", audio=make_tone(300), video=clip())
    assert answer.status_code == 422 and answer.json()["error"] == "give texts or a file"


def test_what_an_item_shows_and_plays(playing):
    answers = send(playing, audio=make_tone(300)).json()["results"]
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


def test_ranges_of_a_sound(playing):
    """Safari plays nothing from a server that sends no ranges."""
    whole = media(playing, LOW)
    assert whole.status_code == 200 and whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)
    for asked, first, last in (
        ("bytes=0-1", 0, 1),
        ("bytes=100-", 100, size - 1),
        ("bytes=10-999999999", 10, size - 1),
        ("bytes=-5", size - 5, size - 1),
        ("bytes=-999999999", 0, size - 1),
    ):
        part = media(playing, LOW, {"Range": asked})
        assert part.status_code == 206 and part.content == whole.content[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    for asked in ("bytes=-", "bytes=0-1,5-6", "lines=1-2", "bytes=x-"):
        assert media(playing, LOW, {"Range": asked}).content == whole.content
    beyond = media(playing, LOW, {"Range": f"bytes={size}-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{size}"


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
        results = send(address, audio=make_tone(300)).json()["results"]
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
