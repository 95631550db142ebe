"""A new modality without an edit in the package: numbers in text files, from training to export."""

import json
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import mmret_tf as mm

WORDS = ["zero", "one", "two", "three", "four", "five"]
SERVE = """import sys, tensorflow as tf
search = tf.saved_model.load(sys.argv[1]).signatures["search_by_number"]
print(search(number=tf.constant(["3", "5"]))["ids"][:, 0].numpy())"""
NUMBER = mm.data.Modality(
    "number", (".num",), int, lambda content, side: Image.new("L", (side,) * 2)
)


@keras.saving.register_keras_serializable("toy")
class NumberTower(mm.models.Tower):
    """One-hot numbers, a frozen backbone of random directions, and a head."""

    modality = "number"

    def __init__(self, head, **kwargs):
        super().__init__(head, **kwargs)
        self.backbone = keras.layers.Dense(16, trainable=False)
        self.backbone.build((None, len(WORDS)))

    def preprocess(self, sources):
        return tf.one_hot(tf.strings.to_number(sources, tf.int32), len(WORDS))

    def features(self, inputs, training=False):
        return self.backbone(inputs)


def test_a_modality_is_trained_cached_saved_searched_and_served(tmp_path):
    mm.data.register_modality(NUMBER)
    rows = [{"id": "note", "captions": ["one"]}]  # an item that lacks the modality
    for number, word in enumerate(WORDS):
        (tmp_path / f"{number}.num").write_text(str(number))
        sources = {"number": [f"{number}.num"], "text": [word]}
        rows.append({"id": word, "sources": sources, "attributes": {"odd": number % 2 == 1}})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection, text = mm.load(tmp_path), mm.TextPreprocessor()
    pairs = collection.pairs("number", "text")
    text.adapt(WORDS)
    keras.utils.set_random_seed(0)
    towers = [NumberTower(mm.models.Head(16, 8)), mm.text_tower(text, units=8, embedding_dim=8)]
    model = mm.MultiEncoder(towers)
    cache = mm.training.FeatureCache(towers[0], pairs.first_sources, tmp_path / "features")
    heads, cached = cache.encoder(model), cache.cached(pairs)
    heads.compile(keras.optimizers.Adam(0.05), mm.losses.ContrastiveCosine())
    batches = cached.as_dataset(heads, batch_size=6, training=True)
    heads.fit(batches.repeat(25), verbose=0)  # one epoch: TensorFlow prepares each anew
    same = [
        heads.encode("number", cached.first_sources),
        model.encode("number", pairs.first_sources),
    ]
    np.testing.assert_allclose(*same, atol=1e-6)
    assert mm.evaluate(model, pairs)["number_to_text_R@1"] == 1

    model.save(tmp_path / "model.keras")
    loaded = mm.load_model(tmp_path / "model.keras")
    store = mm.EmbeddingStore.export(loaded, collection, tmp_path / "embeddings")
    index = mm.build_index(store.embeddings, store.ids, attributes=collection.attributes)
    searcher = mm.Searcher(loaded, index, store.items)
    assert searcher.search(number=b"3", k=1)[0].id == "three"
    assert {result.id for result in searcher.search(text="one", k=2)} == {"one", "note"}
    assert searcher.search(text="two", k=1, where={"odd": True})[0].id != "two"
    served = mm.export_saved_model(searcher, tmp_path / "toy", version=1, k=2)
    answer = subprocess.check_output([sys.executable, "-c", SERVE, str(served)])
    assert answer.strip() == b"[b'three' b'five']"
