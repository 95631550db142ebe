"""The models that the tests of serving serve, small enough to be checked by eye.

    python tests/serving/serving_models.py FOLDER

writes them, with a `models.config`, for a real TensorFlow Serving: see `test_client.py`.
"""

import base64
import io
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import mmret_tf as mm
from mmret_tf.ranking import build_index

CAPTIONS = ["a red circle", "a blue square", "红色的圆", "蓝色的方块"]
IDS = ["000", "红", "b/2"]
INTEGERS = np.array([7, -1, 2**40])
NOT_AN_IMAGE = "not an image: expected JPEG, PNG, GIF, BMP or WebP"


class Toy(tf.Module):
    """Embeds a string as its length in bytes, its first and its last byte, and 1 / length.

    A search always finds the same three items. Scores come from the length of the query; the
    caption of the first item is the text of the query.
    """

    def __init__(self, ids):
        super().__init__()
        self.ids = tf.Variable(ids, trainable=False)

    def embed(self, strings):
        length = tf.cast(tf.strings.length(strings), tf.float32)
        first = tf.io.decode_raw(tf.strings.substr(strings + "\0", 0, 1), tf.uint8)[:, 0]
        last = tf.io.decode_raw(tf.strings.substr("\0" + strings, -1, 1), tf.uint8)[:, 0]
        columns = [length, tf.cast(first, tf.float32), tf.cast(last, tf.float32), 1 / length]
        return {"embedding": tf.stack(columns, axis=1)}

    def embed_image(self, strings):
        are_images = tf.reduce_all(~tf.strings.regex_full_match(strings, "(?s)bad.*"))
        with tf.control_dependencies([tf.debugging.Assert(are_images, [NOT_AN_IMAGE])]):
            return self.embed(tf.identity(strings))

    def find(self, score, caption):
        captions = [caption, tf.fill(tf.shape(score), "two\nlines"), tf.fill(tf.shape(score), "")]
        return {
            "ids": tf.tile(self.ids[None], [tf.size(score), 1]),
            "scores": tf.stack([score, score / 3, -score], axis=1),
            "captions": tf.stack(captions, axis=1),
        }

    def signatures(self):
        text, image = (tf.TensorSpec([None], tf.string, name) for name in ("text", "image"))
        weight = tf.TensorSpec([None], tf.float32, "text_weight")

        def size(strings):
            return tf.cast(tf.strings.length(strings), tf.float32)

        def by_text(text):
            return self.find(size(text), text)

        def by_image(image):
            return self.find(
                100 * self.embed_image(image)["embedding"][:, 0], tf.fill([1], "image")
            )

        def by_both(text, image, text_weight):
            share = tf.where(text_weight == -1.0, 0.5, text_weight)  # -1 stands for none
            return self.find(share * size(text) + (1 - share) * size(image), text)

        functions = {
            "serving_default": (by_text, text),
            "search_by_text": (by_text, text),
            "search_by_image": (by_image, image),
            "search_by_text_and_image": (by_both, text, image, weight),
            "encode_text": (lambda text: self.embed(text), text),
            "encode_image": (lambda image: self.embed_image(image), image),
        }
        return {
            name: tf.function(function).get_concrete_function(*inputs)
            for name, (function, *inputs) in functions.items()
        }


def save_toys(folder):
    """Two toy models, "toy" and "integers"; the second has integer ids and a single signature."""
    toy, integers = Toy(IDS), Toy(INTEGERS)
    tf.saved_model.save(toy, str(folder / "toy" / "1"), toy.signatures())
    only = {"search_by_text": integers.signatures()["search_by_text"]}
    tf.saved_model.save(integers, str(folder / "integers" / "1"), only)


def picture(number, size=(20, 14), format="PNG"):
    """An encoded picture of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def make_model():
    """A small encoder with random weights, the same in every process."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((None, None, 3))
    maps = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(pixels / 255)
    backbone = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(maps))
    text = mm.TextPreprocessor(max_tokens=50, sequence_length=6)
    text.adapt(CAPTIONS)
    images = mm.image_tower(backbone, image_size=16, embedding_dim=4)
    return mm.DualEncoder(images, mm.text_tower(text, word_dim=8, units=8, embedding_dim=4))


def make_searcher(encoder=None, ids=None):
    """A searcher over 300 items at random places."""
    vectors = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    ids = ids or [f"{row:04}" for row in range(300)]
    items = [{"id": key, "captions": [f"item {key}", "圆"]} for key in ids]
    return mm.Searcher(encoder or make_model(), build_index(vectors, ids), items)


def ask_everything(searcher, texts, images, k):
    """A request to every signature, with a row for each text and picture (bytes), and the answers.

    Requests are as `run_signatures.py` reads them. The answers come from `encode_*`, or for each
    row from `Searcher.search`.
    """
    encoder, rows = searcher.encoder, len(texts)
    pictures = [{"b64": base64.b64encode(image).decode()} for image in images]
    weights = [None, *(row / rows for row in range(1, rows))]
    sent = [-1.0 if weight is None else weight for weight in weights]
    both = {"text": texts, "image": pictures, "text_weight": sent}
    by_text = [searcher.search(text, k=k) for text in texts]
    by_image = [searcher.search(image=image, k=k) for image in images]
    by_both = [
        searcher.search(text, image, k, weight)
        for text, image, weight in zip(texts, images, weights, strict=True)
    ]
    embeddings = encoder.encode_texts(texts)
    return [
        (["encode_text", {"text": texts}], embeddings),
        (["encode_image", {"image": pictures}], encoder.encode_images(images)),
        (["serving_default", {"text": texts}], by_text),
        (["search_by_text", {"text": texts}], by_text),
        (["search_by_image", {"image": pictures}], by_image),
        (["search_by_text_and_image", both], by_both),
        (["search_by_embedding", {"embedding": embeddings.tolist()}], by_text),
    ]


def write_models(folder):
    """Each model in a folder of its name, and the configuration of a server for all of them."""
    save_toys(folder)
    mm.export_saved_model(make_searcher(), folder / "small", 1, k=7)
    configs = [
        f'config {{ name: "{name}" base_path: "/models/{name}" model_platform: "tensorflow" }}'
        for name in ("toy", "integers", "small")
    ]
    text = "model_config_list { " + " ".join(configs) + " }"
    (folder / "models.config").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
