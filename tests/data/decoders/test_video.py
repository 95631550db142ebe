"""Clips as evenly spaced frames: every form that they have, and clips that are refused."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageSequence

from mmret_tf.data.decoders import clips
from mmret_tf.data.decoders.clips import (
    MOST_FRAMES,
    as_frames,
    clip_pictures,
    clip_source,
    encode_frames,
)
from mmret_tf.data.decoders.pictures import encode_png
from mmret_tf.data.decoders.video import (
    check_video,
    decode_video,
    frames_decoder,
    load_video,
    video_thumbnail,
)
from mmret_tf.data.drawn.clips import draw_clips
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.sources import path_source

# Grey levels that tell the frames apart.
LEVELS = [0, 50, 100, 150, 200]


def still(level, side=6):
    return Image.new("RGB", (side, side), (level,) * 3)


def animation(form, frames=None, **options):
    first, *others = frames or [still(level) for level in LEVELS]
    file = io.BytesIO()
    first.save(file, form, save_all=True, append_images=others, duration=100, **options)
    return file.getvalue()


def levels(clip):
    """The level of each frame, which has one colour."""
    assert np.ptp(clip, axis=(1, 2, 3)).max() <= 2
    return clip[:, 0, 0, 0].tolist()


FORMS = {
    "GIF": animation("GIF"),
    "WebP": animation("WEBP", lossless=True),
    "APNG": animation("PNG"),
    "frames": encode_frames(np.stack([np.asarray(still(level)) for level in LEVELS])),
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_evenly_spaced(form):
    content = FORMS[form]
    check_video(content)
    assert levels(load_video(content, 5, 6)) == LEVELS
    assert levels(load_video(content, 3, 6)) == [0, 100, 200]
    assert levels(load_video(content, 2, 6)) == [0, 200]
    assert levels(load_video(content, 1, 6)) == [100]
    assert levels(load_video(content, 9, 6)) == [0, 0, 50, 100, 100, 100, 150, 200, 200]


def test_a_still_picture_is_a_clip_of_one_frame():
    file = io.BytesIO()
    still(120).save(file, "JPEG")
    for content in (encode_png(np.asarray(still(120))), file.getvalue()):
        assert levels(load_video(content, 3, 6)) == [120] * 3


def test_a_folder_of_frames(tmp_path):
    for number, level in enumerate(LEVELS):
        still(level).save(tmp_path / f"{number:03}.png")
    (tmp_path / ".hidden").write_text("rubbish")
    assert levels(load_video(tmp_path, 5, 6)) == LEVELS
    source = clip_source(tmp_path)
    before = source.identity
    still(255).save(tmp_path / "002.png")
    assert clip_source(tmp_path).identity != before and source.identity_stamp is None
    assert source.size() == sum(file.stat().st_size for file in tmp_path.glob("*.png"))


def test_the_graph_decodes_an_animation_as_pillow_does():
    for clip in draw_clips("dev", size=3):
        content = clip.encode()
        with Image.open(io.BytesIO(content)) as file:
            expected = [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(file)]
        assert as_frames(content) == content  # nothing is left to Pillow
        assert np.array_equal(decode_video(content, len(expected), 64), expected)


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_frames_that_are_cleared_are_left_to_pillow(disposal):
    frames = [Image.new("RGBA", (8, 8), (0, 0, 0, 0)) for _ in range(3)]
    for place, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (2 * place, 0, 2 * place + 2, 8))
    content = animation("GIF", frames, disposal=disposal)
    with Image.open(io.BytesIO(content)) as file:
        n = file.n_frames
    seen = load_video(content, n, 8)
    assert tuple(seen[-1, 4, 5]) == (255, 0, 0)
    assert tuple(seen[0, 4, 6]) == (255, 255, 255)  # transparent, over white
    if disposal == 2:
        assert tuple(seen[-1, 4, 0]) == (255, 255, 255)  # the first square was cleared
    with pytest.raises(tf.errors.InvalidArgumentError, match="transparent first frame"):
        frames_decoder(n, 8)(tf.constant([content]))  # a server has no Pillow


def test_all_frames_are_cropped_and_mirrored_alike():
    columns = np.tile(np.arange(40, dtype=np.uint8)[None, None, :, None], (4, 40, 1, 3))
    content = encode_frames(columns)
    plain = decode_video(content, 4, 40)
    assert np.array_equal(decode_video(content, 4, 40, mirror=True), plain[:, :, ::-1])
    cropped = decode_video(content, 4, 40, seed=tf.constant([1, 2]), min_crop=0.5)
    assert np.array_equal(cropped, np.broadcast_to(cropped[:1], cropped.shape))
    assert not np.array_equal(cropped, plain)


def test_a_batch_is_decoded_as_one_by_one():
    contents = [FORMS["GIF"], FORMS["frames"]]
    batch = frames_decoder(3, 6)(tf.constant(contents))
    for row, content in zip(batch, contents, strict=True):
        assert np.array_equal(row, load_video(content, 3, 6))


def test_a_long_or_large_clip_keeps_some_frames_and_becomes_smaller():
    many = animation("WEBP", [still(level % 256, side=4) for level in range(300)], lossless=True)
    count = as_frames(many).count(b"IHDR")
    assert MOST_FRAMES <= count < 2 * MOST_FRAMES
    seen = levels(load_video(many, 10, 4))
    assert seen[0] == 0 and len(set(seen)) == 10
    large = animation("WEBP", [still(level, side=1000) for level in LEVELS], lossless=True)
    with Image.open(io.BytesIO(as_frames(large))) as first:
        assert first.size == (512, 512)


@pytest.mark.parametrize("form", ["mp4", "webm", "avi"])
def test_videos(form):
    av = pytest.importorskip("av", reason='needs pip install "mmret_tf[video]"')
    file = io.BytesIO()
    codec = {"mp4": "mpeg4", "webm": "libvpx", "avi": "mpeg4"}[form]
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in LEVELS:
            frame = av.VideoFrame.from_image(still(level, side=32))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    seen = np.mean(load_video(file.getvalue(), 5, 32), axis=(1, 2, 3))
    assert np.allclose(seen, LEVELS, atol=8)
    with pytest.raises(ValueError, match="not a whole"):
        check_video(file.getvalue()[:60])


def test_without_pyav_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for start in (b"\0\0\0\x20ftypisom", b"RIFF\x20\0\0\0AVI LIST"):
        with pytest.raises(ValueError, match=r'pip install "mmret_tf\[video\]", or save an anim'):
            check_video(start)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"rubbish", "not an image"),
        (FORMS["GIF"][:60], "not a whole"),
        (FORMS["WebP"][:60], "not a whole"),
        (FORMS["APNG"][:60], "not a whole"),
        (FORMS["frames"][:-40], "not a whole"),
    ],
)
def test_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        check_video(content)


def test_a_thumbnail_shows_four_frames():
    picture = np.asarray(video_thumbnail(FORMS["GIF"], 20))
    corners = [picture[5, 5, 0], picture[5, 15, 0], picture[15, 5, 0], picture[15, 15, 0]]
    assert corners == [0, 50, 150, 200]
    assert tuple(np.asarray(video_thumbnail(b"rubbish", 60))[0, 0]) == (211, 211, 211)


def test_what_is_no_clip():
    with pytest.raises(ValueError, match=r"frames must be an array .*; got \(3,\)"):
        load_video([1, 2, 3], 2, 8)
    with pytest.raises(ValueError, match="none.gif: No such file"):
        load_video("none.gif", 2, 8)


def test_damaged_tar_files_are_refused_and_named(tmp_path):
    """As one of a folder of frames is sent to a server."""
    still(0).save(tmp_path / "0.png")
    whole = clip_source(tmp_path).read()
    for damaged in (whole[:600], whole[:300] + b"9" + whole[301:], bytes(257) + b"ustar"):
        with pytest.raises(ValueError, match="not a whole clip|not an image"):
            as_frames(damaged)
    with pytest.raises(ValueError, match="the source: not a whole clip: (bad checksum|invalid)"):
        get_modality("video").read(clip_source(whole[:148] + b"9" + whole[149:]))


@pytest.mark.parametrize("form", FORMS)
def test_pictures_of_a_clip_are_those_that_a_tower_sees(form):
    shown = [np.asarray(frame) for frame in clip_pictures(FORMS[form], 3, 6)]
    assert np.array_equal(shown, load_video(FORMS[form], 3, 6))


def test_without_tensorflow_pillow_decodes_a_gif(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    frames = as_frames(FORMS["GIF"])  # as a client sends it
    monkeypatch.undo()
    assert levels(load_video(frames, 5, 6)) == LEVELS


@pytest.mark.parametrize("form", ["WEBP", "PNG", "MP4", "folder"])
def test_the_size_is_checked_before_anything_is_decoded(form, tmp_path, monkeypatch):
    frames = [still(10), still(90)]
    file = io.BytesIO()
    if form == "MP4":
        av = pytest.importorskip("av", reason='needs pip install "mmret_tf[video]"')
        with av.open(file, "w", format="mp4") as video:
            stream = video.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            for frame in frames:
                picture = av.VideoFrame.from_image(frame.resize((32, 32)))
                video.mux(stream.encode(picture))
            video.mux(stream.encode())
        content = file.getvalue()
    elif form == "folder":
        frames[0].save(tmp_path / "0.png")
        content = path_source(tmp_path).read()
    else:
        frames[0].save(file, form, save_all=True, append_images=frames[1:])
        content = file.getvalue()
    assert as_frames(content).count(b"IHDR") in (1, 2)
    monkeypatch.setattr(clips, "MAX_PIXELS", 20)
    for module, name in ((Image.Image, "convert"), (clips, "upright_rgb")):
        monkeypatch.setattr(module, name, None)  # nothing may be decoded
    with pytest.raises(ValueError, match="too large: more than 20 pixels"):
        as_frames(content)


def test_a_clip_of_too_many_frames_is_refused(monkeypatch):
    file = io.BytesIO()
    still(10).save(file, "WEBP", save_all=True, append_images=[still(40), still(90)])
    monkeypatch.setattr(clips, "LONGEST", 2)
    with pytest.raises(ValueError, match="too long: more than 2 frames"):
        as_frames(file.getvalue())
    monkeypatch.setattr(clips, "LONGEST", 3)
    assert as_frames(file.getvalue()).count(b"IHDR") == 3
