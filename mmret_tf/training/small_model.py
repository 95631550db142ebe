"""The small model of the notebooks, trained on drawn scenes once and then loaded."""

import keras

from mmret_tf._files import awaited_folder, keras_home, replaced_file
from mmret_tf.data.decoders.text import TextPreprocessor
from mmret_tf.data.loading import load_pairs
from mmret_tf.models.dual_encoder import DualEncoder, load_model
from mmret_tf.models.towers.image import image_tower
from mmret_tf.models.towers.text import text_tower
from mmret_tf.similarity.losses import ContrastiveCosine

# Part of the file's name: increase it with every change to the recipe.
VERSION = 1
SCENES, EPOCHS, WARM_UP = 2000, 6, 30  # the warm-up in steps


def scenes_model() -> DualEncoder:
    """A small dual encoder of drawn scenes and their captions: the recipe of the notebooks.

    Four convolutions and an LSTM, trained for six epochs on 2,000 scenes by `fit`, as notebook 00
    does it step by step. The first call trains it in less than a minute and keeps it in the Keras
    home (`$KERAS_HOME`, `~/.keras` by default); later calls load it. Section 5.

    Returns:
        An encoder of pictures of 48 pixels and of English and Chinese texts; `embedding_dim` 256.

    >>> scenes_model().encode_texts(["红色的圆"]).shape  # doctest: +SKIP
    (1, 256)
    """
    folder = keras_home() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"mmret_scenes_v{VERSION}.keras"
    with awaited_folder(folder, exclusive=True):  # a second process waits for the first
        if not file.exists():
            with replaced_file(file) as temporary:
                _train().save(temporary)
        return load_model(file)


def _train() -> DualEncoder:
    pairs = load_pairs("scenes", "train", SCENES, seed=0)
    text = TextPreprocessor(max_tokens=1000, sequence_length=32)
    text.adapt(pairs.all_captions())
    keras.utils.set_random_seed(0)
    model = DualEncoder(
        image_tower("SmallCNN", weights=None, image_size=48, embedding_dim=256, min_crop=1.0),
        text_tower(text, units=128, embedding_dim=256, pooling="max"),
    )
    dataset = pairs.as_dataset(model, batch_size=64, training=True)
    learning_rate = keras.optimizers.schedules.CosineDecay(
        0.0, EPOCHS * len(dataset) - WARM_UP, warmup_target=2e-3, warmup_steps=WARM_UP
    )
    model.compile(keras.optimizers.Adam(learning_rate), loss=ContrastiveCosine())
    model.fit(dataset, epochs=EPOCHS, verbose=2)
    return model
