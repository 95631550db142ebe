"""What tests share: a small backbone and model, collections, and a Keras home of their own."""

import json
import os
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmret_tf.data import TextPreprocessor, load_pairs
from mmret_tf.models import DualEncoder, image_tower, text_tower
from mmret_tf.similarity import ContrastiveCosine

# Processes that run side by side would wait for each other's threads.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
tf.config.threading.set_intra_op_parallelism_threads(max(1, os.cpu_count() // workers))

CAPTIONS = ["a red circle", "a blue square", "红色的圆", "蓝色的方块"]


@pytest.fixture(scope="session", autouse=True)
def keras_home(tmp_path_factory):
    """Drawn scenes are cached under KERAS_HOME: not in that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras_home")))
        yield


def make_backbone(width=8, side=None):
    """Images, by default of any size -> features `[batch, width]`, in four layers."""
    images = keras.Input((side, side, 3))
    hidden = keras.layers.Rescaling(1 / 255)(images)
    convolution = keras.layers.Conv2D(width, 3, strides=2, activation="relu", name="convolution")
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(convolution(hidden)))


def make_text(captions=CAPTIONS, length=6):
    """An adapted preprocessor."""
    text = TextPreprocessor(max_tokens=50, sequence_length=length)
    text.adapt(captions)
    return text


def make_model(text=None, backbone=None, **settings):
    """A dual encoder of a few hundred weights for pictures of 16 pixels, compiled."""
    keras.utils.set_random_seed(0)
    settings = {"image_size": 16, "trainable": True, "embedding_dim": 4, **settings}
    images = image_tower(backbone or make_backbone(), **settings)
    texts = text_tower(text or make_text(), word_dim=8, units=8, embedding_dim=images.embedding_dim)
    built = DualEncoder(images, texts)
    built.compile(keras.optimizers.Adam(0.01), loss=ContrastiveCosine())
    return built


@pytest.fixture(scope="session")
def text_preprocessor():
    """Adapted to CAPTIONS; not to be changed."""
    return make_text()


@pytest.fixture(scope="session")
def shared_model(text_preprocessor):
    """`make_model()`, made and traced once: not to be trained or changed."""
    return make_model(text_preprocessor)


@pytest.fixture
def model():
    """`make_model()`, for a test that trains or changes it."""
    return make_model()


@pytest.fixture(scope="session")
def batch(text_preprocessor):
    """Four pictures of one colour each, and their captions as token ids."""
    colours = np.array([[255, 0, 0], [0, 0, 255], [250, 9, 9], [9, 9, 250]], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (4, 16, 16, 3)).copy()
    return {"image": images, "text": text_preprocessor(CAPTIONS).numpy()}


@pytest.fixture(scope="session")
def picture_files(tmp_path_factory, batch):
    """The files of the four pictures: of one colour each, so that crops leave them as they are."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(4)]
    for path, pixels in zip(paths, batch["image"], strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def make_wide_model(text=None, width=128, **settings):
    """A dual encoder whose convolutions outweigh the overhead of a file."""
    images = keras.Input((None, None, 3))
    hidden = keras.layers.Rescaling(1 / 255)(images)
    for _ in range(2):
        hidden = keras.layers.Conv2D(width, 3, strides=2, padding="same")(hidden)
        hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden))
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(hidden))
    return make_model(text, backbone, **{"embedding_dim": 32, "trainable": False, **settings})


def draw(path, level=128):
    """A picture of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 12), (level,) * 3).save(path)
    return path


def write(path, *lines, newline="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + newline for line in lines).encode("utf-8"))
    return path


def write_jsonl(folder, *rows):
    return write(folder / "captions.jsonl", *(json.dumps(r, ensure_ascii=False) for r in rows))


def write_config(folder, data, **settings):
    """The configuration of a small training on a collection, and its backbone; its path."""
    make_backbone().save(folder / "backbone.keras")
    settings |= {"data": str(data), "backbone": str(folder / "backbone.keras")}
    settings |= {"image_size": 16, "embedding_dim": 8, "word_dim": 8, "units": 8}
    path = folder / "config.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def load_quietly(*args, loader=load_pairs, **kwargs):
    """Load a collection from which something is set aside on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return loader(*args, **kwargs)


# Items of every kind, and files of every kind of damage.
MIXED_ROWS = (
    {"image": "red.png", "captions": ["a red circle", "红色的圆"], "split": "train"},
    {"id": "two", "images": ["blue.png", "cut.jpg", "navy.png"], "captions": ["a blue square"]},
    {"id": "note", "captions": ["a red circle", "红色的圆"], "attributes": {"kind": "note"}},
    {"image": "alone.png", "split": "train"},
    {"id": "lost", "images": ["gone.png", "empty.png"], "captions": ["a red circle"]},
    {"image": "dev.png", "caption": "蓝色的方块", "split": "dev"},
    {"id": "dev note", "caption": "a blue square", "split": "dev"},
)


def make_mixed_collection(folder):
    """A folder with `MIXED_ROWS`, where "lost" has no usable image, and "two" a broken one."""
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "navy": (0, 0, 128), "alone": (200, 9, 9)}
    folder.mkdir()
    for name, colour in {**colours, "dev": (0, 9, 200)}.items():
        Image.new("RGB", (20, 16), colour).save(folder / f"{name}.png")
    Image.new("RGB", (20, 16), "red").save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-200])
    (folder / "empty.png").write_bytes(b"")
    write_jsonl(folder, *({"split": "train"} | row for row in MIXED_ROWS))
    return folder
