"""A service over twelve pictures of plain colours, whose model was trained on them; and one over
sounds and clips, whose model was not trained, so that an item is found by its own file alone."""

import contextlib
import threading
import time

import keras
import numpy as np
import pytest
from conftest import make_backbone, make_text, write_jsonl
from PIL import Image

import mmret_tf as mm
from mmret_tf.data.decoders.sounds import encode_wav

pytest.importorskip("fastapi", reason='needs the extra "web"')
pytest.importorskip("uvicorn", reason='needs the extra "web"')

from mmret_tf.ranking import Run
from mmret_tf.serving.web.app import create_app
from mmret_tf.serving.web.server import address_of, make_server, open_socket
from mmret_tf.serving.web.service import SearchService

COLOURS = {
    "red": ((220, 20, 20), "红色"),
    "green": ((20, 180, 40), "绿色"),
    "blue": ((30, 60, 230), "蓝色"),
    "yellow": ((240, 220, 20), "黄色"),
    "white": ((250, 250, 250), "白色"),
    "black": ((5, 5, 5), "黑色"),
}


def make_gallery(folder):
    """Two pictures of each colour, in folders with Chinese names; the second is a bit darker."""
    rows = []
    for name, (colour, chinese) in COLOURS.items():
        for size in (1, 2):
            path = folder / f"图 片/{chinese}/{name} {size}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), tuple(each - 4 * (size - 1) for each in colour)).save(path)
            rows.append(
                {
                    "id": f"图 片/{chinese}/{name} {size}?#%.png",
                    "image": str(path.relative_to(folder)),
                    "captions": [f"a {name} picture", f"{chinese}的图片"],
                    "attributes": {"colour": name, "size": size},
                }
            )
    write_jsonl(folder, *rows)
    return mm.load(folder)


@pytest.fixture(scope="session")
def web_gallery(tmp_path_factory):
    """The collection of the service."""
    return make_gallery(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def web_model(web_gallery):
    """A model that finds a colour by its name in both languages."""
    text = make_text([each for item in web_gallery.records() for each in item["captions"]])
    keras.utils.set_random_seed(0)
    images = mm.image_tower(make_backbone(), trainable=True, image_size=16, embedding_dim=32)
    model = mm.DualEncoder(images, mm.text_tower(text, word_dim=16, units=32, embedding_dim=32))
    pairs = web_gallery.pairs("image", "text")
    batches = pairs.as_dataset(model, batch_size=24).cache()
    model.compile(keras.optimizers.Adam(0.01), loss=mm.losses.ContrastiveCosine())
    model.fit(batches.repeat(200), verbose=0)
    return model


@pytest.fixture(scope="session")
def web_run(tmp_path_factory, web_model, web_gallery):
    """The folder of its run; not to be changed."""
    return make_run(tmp_path_factory.mktemp("web") / "colours", web_model, web_gallery)


def make_run(folder, model, gallery):
    """A run with a model, embeddings and an index."""
    folder.mkdir()
    run = Run(folder)
    model.save(run.model)
    mm.EmbeddingStore.export(model, gallery, run.embeddings)
    run.build_index()
    return run


@contextlib.contextmanager
def running(service, token=None):
    """The server of a service, while it runs in a thread, and its address."""
    with open_socket("127.0.0.1", 0) as listening:
        server = make_server(create_app(service, token))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield server, address_of(listening)
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def serving(service, token=None):
    """The address of a service, while it runs."""
    with running(service, token) as (_, address):
        yield address


@pytest.fixture(scope="session")
def service(web_run):
    """The service of the run; not to be changed."""
    return SearchService.open(web_run)


@pytest.fixture(scope="session")
def address(service):
    """Where the service listens."""
    with serving(service) as address:
        yield address


# Sounds and clips: samples a second, and the items' ids.
RATE = 4000
TONES = {"声 音/low?#%": 300, "声 音/high?#%": 1200}
CLIPS = {"片 段/red?#%": (220, 20, 20), "片 段/blue?#%": (30, 60, 230)}


def make_tone(pitch, seconds=1.0):
    """A WAV file."""
    time = np.arange(round(RATE * seconds)) / RATE
    return encode_wav(0.5 * np.sin(2 * np.pi * pitch * time), RATE)


def save_clip(path, colour):
    """A square that moves over a white ground, as an animation of six frames."""
    frames = [Image.new("RGB", (48, 48), "white") for _ in range(6)]
    for number, frame in enumerate(frames):
        frame.paste(colour, (6 * number, 16, 6 * number + 16, 32))
    options = {"duration": 100, "loop": 0, "lossless": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def make_playing_gallery(folder):
    """Two sounds, two clips, an item with both, and one without files."""
    rows = []
    for number, (id, pitch) in enumerate(TONES.items()):
        (folder / f"{number}.wav").write_bytes(make_tone(pitch))
        captions = [f"a tone of {pitch} Hz", f"{pitch} 赫兹的声音"]
        rows.append({"id": id, "audio": f"{number}.wav", "captions": captions})
    for number, (id, colour) in enumerate(CLIPS.items()):
        save_clip(folder / f"{number}.gif", colour)
        captions = ["a square that moves", "一个移动的方块"]
        rows.append({"id": id, "video": f"{number}.gif", "captions": captions})
    (folder / "both.wav").write_bytes(make_tone(700))
    save_clip(folder / "both.webp", (20, 180, 40))
    rows.append(
        {"id": "both", "audio": "both.wav", "video": "both.webp", "captions": ["both", "都有"]}
    )
    rows.append({"id": "note", "captions": ["a note", "笔记"]})
    write_jsonl(folder, *rows)
    return mm.load(folder)


def make_playing_model():
    """An encoder of sounds, clips and texts."""
    keras.utils.set_random_seed(0)
    return mm.MultiEncoder(
        [
            mm.audio_tower(rate=RATE, seconds=1.0, embedding_dim=16),
            mm.video_tower(make_backbone(), frames=3, image_size=16, units=8, embedding_dim=16),
            mm.text_tower(make_text(["a tone", "a square"]), units=8, embedding_dim=16),
        ]
    )


@pytest.fixture(scope="session")
def playing_folder(tmp_path_factory):
    """The files of the sounds and clips; not to be changed."""
    return tmp_path_factory.mktemp("playing")


@pytest.fixture(scope="session")
def playing_service(playing_folder, tmp_path_factory):
    """The service of the sounds and clips; not to be changed."""
    gallery = make_playing_gallery(playing_folder)
    folder = tmp_path_factory.mktemp("playing_run") / "playing"
    service = SearchService.open(make_run(folder, make_playing_model(), gallery))
    service.warm_up()
    return service


@pytest.fixture(scope="session")
def playing(playing_service):
    """Where it listens."""
    with serving(playing_service) as address:
        yield address
