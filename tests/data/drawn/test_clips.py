"""Drawn clips: which are chosen for a split, and frames that show what the attributes say."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageSequence

from mmret_tf.data.drawn.clips import FRAME_MS, FRAMES, MOTIONS, MOVERS, Clip, Mover, draw_clips


def traces(clip, colour):
    """The centre (x, y) and the number of the pixels of a colour in each frame."""
    found = []
    for frame in clip.draw():
        is_colour = np.all(np.asarray(frame) == ImageColor.getrgb(colour), axis=2)
        y, x = np.nonzero(is_colour)
        found.append((x.mean(), y.mean(), is_colour.sum()))
    return np.array(found)


def test_clips_stay_as_they_are():
    # In every process, on every machine and in every release of Python.
    assert draw_clips("dev", size=9, seed=0)[-1] == Clip(
        "dev-0-00008",
        (Mover("cross", "white", "shrinks"),),
        (
            "a white cross shrinks, and nothing else is there",
            "a white cross gets smaller and smaller",
            "只有白色的十字形变小",
            "白色的十字形越来越小",
        ),
    )


def test_no_clip_is_in_two_splits():
    seen = {
        split: {
            clip.movers
            for size, seed in [(1, 5), (30, 1), (900, 2)]
            for clip in draw_clips(split, size, seed)
        }
        for split in ("train", "dev", "test")
    }
    assert not seen["train"] & seen["dev"] and not seen["train"] & seen["test"]
    assert not seen["dev"] & seen["test"]
    counts = Counter(len(clip.movers) for clip in draw_clips("train", 1000))
    assert counts == {1: 150, 2: 850}


@pytest.mark.parametrize(
    ("motion", "coordinate", "sign"),
    [
        ("left to right", 0, 1),
        ("right to left", 0, -1),
        ("top to bottom", 1, 1),
        ("bottom to top", 1, -1),
    ],
)
def test_a_crossing_shape_goes_one_way_alone(motion, coordinate, sign):
    path = traces(Clip("some id", (Mover("square", "red", motion),), ()), "red")
    steps = np.diff(path[:, coordinate])
    assert np.all(sign * steps > 2) and np.allclose(steps, steps[0], atol=0.6)
    assert abs(path[-1, coordinate] - path[0, coordinate]) > 40  # of 64 pixels
    assert np.ptp(path[:, 1 - coordinate]) < 0.6


@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_a_circling_shape_turns_once(motion, sign):
    path = traces(Clip("some id", (Mover("circle", "blue", motion),), ()), "blue")
    x, y = (path[:, :2] - path[:-1, :2].mean(axis=0)).T
    turns = np.diff(np.unwrap(np.arctan2(y, x)))  # y points down, so clockwise is positive
    assert np.all(sign * turns > 0) and abs(sign * turns.sum() - 2 * np.pi) < 0.2


@pytest.mark.parametrize(("motion", "sign"), [("grows", 1), ("shrinks", -1), ("stands still", 0)])
def test_sizes(motion, sign):
    path = traces(Clip("some id", (Mover("circle", "green", motion),), ()), "green")
    assert np.all(np.sign(np.diff(path[:, 2])) == sign)
    assert np.ptp(path[:, 0]) < 0.6 and np.ptp(path[:, 1]) < 0.6


def test_the_file_is_an_animation_of_the_frames():
    clip = draw_clips("dev", size=1)[0]
    with Image.open(io.BytesIO(clip.encode())) as file:
        assert (file.format, file.n_frames, file.info["duration"]) == ("GIF", FRAMES, FRAME_MS)
        frames = [np.asarray(each.convert("RGB"), int) for each in ImageSequence.Iterator(file)]
    drawn = np.stack([np.asarray(each, int) for each in clip.draw()])
    assert np.abs(np.stack(frames) - drawn).max() < 16  # of 255: a palette has 256 colours


def test_captions_name_everything():
    for clip in draw_clips("test", size=40):
        english, chinese = clip.captions[:2], clip.captions[2:]
        for mover in clip.movers:
            assert all(f"{mover.colour} {mover.shape}" in caption for caption in english)
            assert not any(mover.shape in caption for caption in chinese)
    both = [Clip("x", (Mover("star", "red", motion),), ()) for motion in MOTIONS]
    assert len({str(clip.movers[0]) for clip in both}) == len(MOTIONS)
    assert len(MOVERS) == 5 * 8 * 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "all"}, "split must be one of train, dev, test; got 'all'"),
        ({"size": 0}, "size must be a whole number, at least 1; got 0"),
        ({"size": 10**6, "split": "dev"}, "size must be at most .* in the split 'dev'"),
        ({"seed": -1}, "seed must be an integer from 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_clips(**arguments)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left to right", "right to left"),
        ("top to bottom", "bottom to top"),
        ("clockwise", "counterclockwise"),
    ],
)
def test_the_frame_in_the_middle_tells_no_direction(one, other):
    first, second = (
        [np.asarray(frame) for frame in Clip("x", (Mover("star", "red", motion),), ()).draw()]
        for motion in (one, other)
    )
    assert np.array_equal(first[FRAMES // 2], second[FRAMES // 2])
    assert not np.array_equal(first[1], second[1])
