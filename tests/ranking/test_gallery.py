"""Ranked results as pictures: thumbnails, web pages, and the gallery in a PNG file."""

import base64
import html.parser
import io

import numpy as np
import pytest
from PIL import Image

from mmret_tf.data.decoders.audio import load_audio
from mmret_tf.data.decoders.sounds import encode_wav
from mmret_tf.ranking.gallery import (
    COLUMNS,
    THUMBNAIL,
    draw_gallery,
    draw_items,
    playable,
    playing_modalities,
    results_html,
    thumbnail,
)
from mmret_tf.ranking.results import SearchResult, SearchResults

GREY = (211, 211, 211)


def record(key, *captions, images=()):
    sources = {"image": [str(image) for image in images], "text": list(captions)}
    return {"id": key, "sources": sources, "attributes": {}}


def results_of(*records):
    return SearchResults(
        SearchResult(rank, each["id"], 1 / rank, each) for rank, each in enumerate(records, 1)
    )


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (30, 20), "red").save(path)
    return path


def colours(picture):
    assert picture.size == (8, 8)
    return {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}


def test_a_thumbnail_is_the_first_source_that_can_be_read(red, tmp_path):
    assert colours(thumbnail(record("a", "a dog", images=[red]), 8)) == {(255, 0, 0)}
    gone = tmp_path / "gone.png"
    assert colours(thumbnail(record("a", images=[gone, red]), 8)) == {(255, 0, 0)}
    assert colours(thumbnail(record("a", images=[gone]), 8)) == {GREY}
    assert colours(thumbnail({"id": "a"}, 8)) == {GREY}
    assert colours(thumbnail({"id": "a", "image": str(red), "captions": []}, 8)) == {(255, 0, 0)}


def test_an_item_without_a_picture_shows_its_first_text(tmp_path):
    def inked_rows(*captions, images=()):
        pixels = np.asarray(thumbnail(record("a", *captions, images=images)).convert("L"))
        assert pixels.shape == (THUMBNAIL, THUMBNAIL)
        return (pixels < 128).any(axis=1)

    one = inked_rows("red", "not shown")
    assert one[:40].any() and not one[40:].any()
    assert np.array_equal(inked_rows("red", images=[tmp_path / "gone.png"]), one)


def test_a_page_escapes_captions_and_shows_a_card_for_each_result(red):
    results = results_of(
        record("a", "<script>alert('红')</script>", images=[red]),
        record("b", "a dog", images=[red.with_name("gone.png")]),
        record("c"),
    )
    page = results_html(results)
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<script>" not in page and "&lt;script&gt;" in page and "红" in page


def test_a_page_is_a_table_with_the_query_and_a_frame_around_the_right_answer(red):
    results = results_of(
        record("a", "a red circle", "红色的圆", images=[red]),
        record("b", "a dog", images=[red]),
    )
    results.query = [("text", "圆形", 1.0), ("text", "蓝色", -0.5), ("image", red, 1.0)]
    page = results_html(results.marked("b", "not found"))
    assert "style=" not in page  # GitHub strips styles
    header, cells = page.split("</tr>", 1)
    assert header == '<table><tr><th colspan="3" align="left">圆形 − 蓝色</th>'
    query, first, second = cells.split("</td>")[:3]
    assert query.endswith("<b>query</b>")
    assert first.endswith("<b>1</b> · 1.000<br>红色的圆")  # the query is Chinese
    assert second.endswith("<b>2</b> · 0.500 ✓<br>a dog")
    corners = []
    for _, _, content in Page(page).found["img"]:
        corners.append(Image.open(io.BytesIO(content)).getpixel((0, 0)))
    assert [red > green for red, green, _ in corners] == [True, True, False]
    assert results.right_ids == frozenset()


def test_a_page_breaks_its_rows(red):
    page = results_html(results_of(*(record(str(n), images=[red]) for n in range(COLUMNS + 1))))
    assert [row.count("<td") for row in page.split("</tr>")] == [COLUMNS, 1, 0]


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8))])
def test_a_query_may_be_a_picture_in_memory(picture):
    results = results_of(record("a", "a dog"))
    results.query = [("image", picture, 1.0)]
    (_, _, content), _ = Page(results_html(results)).found["img"]
    assert (
        max(Image.open(io.BytesIO(content)).getpixel((80, 80))) < 8
    )  # black, not the grey of none


def test_a_gallery_frames_the_right_answers(red, tmp_path):
    results = results_of(record("a", "红色的圆", images=[red]), record("b", "a dog"))
    rows = [("a red circle", results), ("图" * 200, results_of(record("c")))]
    draw_gallery(rows, tmp_path / "gallery.png", ["b", None])
    sheet = np.asarray(Image.open(tmp_path / "gallery.png"))
    assert sheet.shape[1] > 2 * THUMBNAIL and sheet.shape[0] > 2 * THUMBNAIL
    framed = (sheet == [0, 128, 0]).all(axis=-1)
    rows, columns = np.flatnonzero(framed.any(axis=1)), np.flatnonzero(framed.any(axis=0))
    assert columns.min() > THUMBNAIL and rows.max() < 2 * THUMBNAIL  # the second of the first row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.png", "red.png"]


def test_a_page_of_items_has_a_picture_with_up_to_two_captions_below(red, tmp_path):
    file = tmp_path / "items.png"
    records = [record(str(n), "a dog", images=[red]) for n in range(COLUMNS + 1)]
    records[-1] = record("last", "one\x1b", "二", "not drawn", images=[red])
    draw_items(records, file)
    page = Image.open(file)
    assert page.size == (12 + COLUMNS * (THUMBNAIL + 12), 12 + 2 * (3 * THUMBNAIL + 12))
    row = 12 + 3 * THUMBNAIL + 12
    assert page.getpixel((20, 20)) == page.getpixel((20, row + 8)) == (255, 0, 0)
    pixels = np.asarray(page.convert("L"))
    second = pixels[row + 2 * THUMBNAIL : row + 3 * THUMBNAIL]
    assert (second[:, 12 : 12 + THUMBNAIL] < 128).any()  # of the last item
    assert (second[:, 12 + THUMBNAIL :] == 255).all()


# Sounds and clips

RATE = 4000


class Page(html.parser.HTMLParser):
    """The pictures and players of a page: their attributes, and their contents."""

    def __init__(self, page):
        super().__init__()
        self.found = {"img": [], "audio": []}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag in self.found:
            attributes = dict(attributes)
            media_type, _, content = attributes["src"].partition(";base64,")
            content = base64.b64decode(content, validate=True)
            self.found[tag].append((attributes, media_type.removeprefix("data:"), content))


def page_of(*records):
    """Pictures, and players."""
    found = Page(results_html(results_of(*records))).found
    return found["img"], found["audio"]


def tone(path, seconds=1.0, rate=RATE):
    """A sound that fades in, in a file."""
    time = np.arange(round(rate * seconds)) / rate
    path.write_bytes(encode_wav(0.5 * time / seconds * np.sin(2 * np.pi * 300 * time), rate))
    return path


def clip(path):
    """A square that moves to the right, in a file."""
    frames = [Image.new("RGB", (48, 48), "white") for _ in range(6)]
    for number, frame in enumerate(frames):
        frame.paste("red", (6 * number, 16, 6 * number + 16, 32))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


def playing(key="a", audio=(), video=(), image=(), text=("a tone",)):
    given = {"audio": audio, "video": video, "image": image, "text": text}
    sources = {name: list(map(str, each)) for name, each in given.items() if each}
    return {"id": key, "sources": sources, "attributes": {}}


def test_a_sound_has_a_player_with_the_same_samples(tmp_path):
    [(picture, kind, content)], [(player, media_type, sound)] = page_of(
        playing(audio=[tone(tmp_path / "a.wav")], text=['a "high" <b>tone</b> & 声音'])
    )
    assert media_type == "audio/wav" and "controls" in player
    assert player["aria-label"] == picture["alt"] == 'a "high" <b>tone</b> & 声音'
    samples = load_audio(sound, RATE, 1.0)
    np.testing.assert_allclose(samples, load_audio(tmp_path / "a.wav", RATE, 1.0), atol=1e-4)
    waveform = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert kind == "image/jpeg" and waveform.shape == (THUMBNAIL, THUMBNAIL)
    heights = (waveform < 180).sum(axis=0)  # it fades in
    assert heights[-20:].min() > 50 > 10 > heights[:10].max()


def test_of_a_long_sound_the_first_ten_seconds_play(tmp_path):
    path = tone(tmp_path / "a.wav", seconds=12, rate=44100)
    media_type, sound = playable(playing(audio=[path]))
    assert media_type == "audio/wav" and len(sound) == 44 + 2 * 10 * 16000
    beginning = load_audio(sound, 16000, 10.0)
    assert beginning[-16000:].std() > 0.25 > 0.05 > beginning[:16000].std()


def test_a_clip_moves(tmp_path):
    path = clip(tmp_path / "a.gif")
    assert playing_modalities(playing(video=[path])) == ["video"]
    [(picture, media_type, content)], players = page_of(playing(video=[path]))
    assert media_type == "image/webp" and players == [] and picture["width"] == str(THUMBNAIL)
    animation = Image.open(io.BytesIO(content))
    assert animation.n_frames > 3 and animation.info["loop"] == 0
    reds = []
    for number in (0, animation.n_frames - 1):
        animation.seek(number)
        red = np.asarray(animation.convert("RGB")).astype(int)
        reds.append(np.flatnonzero((red[:, :, 0] - red[:, :, 1] > 128).any(axis=0)).mean())
    assert reds[0] < 0.3 * animation.width < 0.6 * animation.width < reds[1]

    strip = np.asarray(thumbnail(playing(video=[path]), 64)).astype(int)
    quarters = [strip[top : top + 32, left : left + 32] for top in (0, 32) for left in (0, 32)]
    places = [np.flatnonzero((q[:, :, 0] - q[:, :, 1] > 128).any(axis=0)).mean() for q in quarters]
    assert places == sorted(places) and places[0] < places[-1] - 10


def test_an_item_with_a_sound_and_a_clip_has_both(tmp_path, red):
    both = playing(audio=[tone(tmp_path / "a.wav")], video=[clip(tmp_path / "a.gif")])
    [(_, kind, _)], [(_, media_type, _)] = page_of(both)
    assert (kind, media_type) == ("image/webp", "audio/wav")
    assert playing_modalities(both) == ["audio", "video"]
    assert [playable(both, name)[0] for name in (None, "audio", "video")] == [
        *("audio/wav", "audio/wav"),
        "image/webp",
    ]
    assert playable(both, "image") is None and playable(both, "smell") is None
    [(_, kind, content)], [_] = page_of(playing(image=[red], audio=[tmp_path / "a.wav"]))
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert kind == "image/jpeg" and (abs(pixels - [254, 0, 0]) < 3).all()  # the picture itself


def test_files_that_are_gone_or_damaged_are_passed_over(tmp_path):
    whole = tone(tmp_path / "a.wav")
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[:100])
    noise = tmp_path / "noise.gif"
    noise.write_bytes(b"GIF89a" + bytes(range(200)))
    gone = tmp_path / "gone.wav"
    assert playable(playing(audio=[gone, cut, whole])) == playable(playing(audio=[whole]))
    assert playable(playing(audio=[gone, cut], video=[noise])) is None
    assert playable(playing(audio=[cut], video=[clip(tmp_path / "a.gif")]))[0] == "image/webp"
    assert playable({"id": "a"}) is None and playing_modalities({"id": "a"}) == []
    pictures, players = page_of(
        playing("a", audio=[gone]), playing("b", audio=[cut]), playing("c", video=[noise])
    )
    assert players == [] and [kind for _, kind, _ in pictures] == ["image/jpeg"] * 3
    for _, _, content in pictures:
        assert Image.open(io.BytesIO(content)).size == (THUMBNAIL, THUMBNAIL)


def test_a_gallery_draws_sounds_and_clips(tmp_path):
    items = [playing("a", audio=[tone(tmp_path / "a.wav")]), playing("b", video=[tmp_path / "no"])]
    draw_gallery([("a tone", results_of(*items))], tmp_path / "gallery.png")
    sheet = np.asarray(Image.open(tmp_path / "gallery.png").convert("RGB"))
    assert (sheet == [70, 130, 180]).all(axis=-1).any()  # the waveform is steel blue
