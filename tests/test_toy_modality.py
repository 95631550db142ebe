"""A new modality without an edit in the package: numbers in text files, from training to export."""

import json
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import mmret_tf as mm
from mmret_tf.data import Modality, register_modality
from mmret_tf.models import Head, Tower
from mmret_tf.ranking import Run
from mmret_tf.training import FeatureCache

WORDS = ["zero", "one", "two", "three", "four", "five"]
SERVE = """
import sys, tensorflow as tf
served = tf.saved_model.load(sys.argv[1]).signatures
print(served["search_by_number"](number=tf.constant(["3", "5"]))["ids"][:, 0].numpy())
"""


def draw_number(contents, side):
    return Image.new("L", (side, side), int(contents)).convert("RGB")


register_modality(Modality("number", (".num",), check=int, thumbnail=draw_number))


@keras.saving.register_keras_serializable("toy")
class NumberTower(Tower):
    """One-hot numbers, a frozen backbone of random directions, and a head."""

    modality = "number"

    def __init__(self, head=None, name="number_tower", **kwargs):
        super().__init__(head or Head(16, 8), name=name, **kwargs)
        self.backbone = keras.layers.Dense(16, trainable=False, name="directions")
        self.backbone.build((None, len(WORDS)))

    def preprocess(self, sources):
        return tf.one_hot(tf.strings.to_number(sources, tf.int32), len(WORDS))

    def features(self, inputs, training=False):
        return self.backbone(inputs)

    def get_config(self):
        return {"head": keras.saving.serialize_keras_object(self.head), "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["head"]), config["name"])


def test_a_modality_is_trained_cached_saved_searched_and_served(tmp_path):
    rows = [{"id": "note", "captions": ["one"]}]  # an item that lacks the modality
    for number, word in enumerate(WORDS):
        (tmp_path / f"{number}.num").write_text(str(number))
        sources = {"number": [f"{number}.num"], "text": [word]}
        rows.append({"id": word, "sources": sources, "attributes": {"odd": number % 2 == 1}})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection = mm.load(tmp_path)
    pairs = collection.pairs("number", "text")
    assert len(collection) == 7 and len(pairs) == 6

    keras.utils.set_random_seed(0)
    text = mm.TextPreprocessor()
    text.adapt(WORDS)
    model = mm.MultiEncoder([NumberTower(), mm.text_tower(text, units=8, embedding_dim=8)])
    cache = FeatureCache(model.towers["number"], pairs.first_sources, tmp_path / "features")
    heads, cached = cache.encoder(model), cache.cached(pairs)
    heads.compile(keras.optimizers.Adam(0.05), mm.losses.ContrastiveCosine())
    heads.fit(cached.as_dataset(heads, batch_size=6, training=True), epochs=25, verbose=0)
    np.testing.assert_allclose(
        heads.encode("number", cached.first_sources), model.encode("number", pairs.first_sources)
    )
    assert mm.evaluate(model, pairs)["number_to_text_R@1"] == 1

    run = Run(tmp_path / "run")
    run.folder.mkdir()
    model.save(run.model)
    mm.EmbeddingStore.export(mm.load_model(run.model), collection, run.embeddings)
    run.build_index()
    searcher = mm.Searcher.open(run.folder)
    assert [result.id for result in searcher.search(number=b"3", k=1)] == ["three"]
    assert {result.id for result in searcher.search(text="one", k=2)} == {"one", "note"}
    assert searcher.search(text="two", k=1, where={"odd": True})[0].id != "two"
    assert searcher.search(number=tmp_path / "4.num", text="four", k=1)[0].id == "four"

    served = str(mm.export_saved_model(searcher, tmp_path / "toy", version=1, k=2))
    done = subprocess.run([sys.executable, "-c", SERVE, served], capture_output=True, text=True)
    assert done.stdout.strip() == "[b'three' b'five']", done.stderr
