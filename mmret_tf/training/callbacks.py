"""Callbacks (回调): at the end of an epoch recall is measured, and the best model is kept."""

import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from mmret_tf._files import replaced_file
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.evaluator import embed_pairs, named_by_modality
from mmret_tf.evaluation.metrics import evaluate_retrieval

RECALL_SUM = "val_recall_sum"


class EpochSeeds(keras.callbacks.Callback):
    """Derive the random state of dropout from the number of the epoch.

    Keras saves the weights, but not the state of its generators. With this a killed run resumes
    exactly as it would have continued.
    """

    def on_epoch_begin(self, epoch, logs=None):
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":  # a seed, and how often it was drawn
                seed = variable.numpy()[0]
                drawn = epoch * 2**20  # an epoch has fewer steps than that
                variable.assign(np.array([seed, drawn], variable.dtype))


class RetrievalMetrics(keras.callbacks.Callback):
    """Report recall on validation sets after each epoch, as `val_i2t_R@1`, `val_t2i_R@10` and so
    on, fractions 0 to 1; `val_recall_sum` is their sum.

    Args:
        parts: The validation sets, of different modalities.

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16)
    >>> model = mm.DualEncoder(image, mm.text_tower(text))
    >>> model.compile("adam", mm.losses.ContrastiveCosine())
    >>> dataset = pairs.as_dataset(model, batch_size=4, training=True)
    >>> measured = RetrievalMetrics(pairs)  # in earnest, of pictures not trained on
    >>> history = model.fit(dataset, callbacks=[measured], verbose=0)
    >>> sorted(history.history)[:3], history.history["val_t2i_R@10"]  # among 4 pictures
    (['loss', 'spread', 'val_i2t_R@1'], [1.0])
    """

    def __init__(self, *parts: Pairs):
        super().__init__()
        self.parts = parts

    def on_epoch_end(self, epoch, logs=None):
        recalls = {}
        for part in self.parts:
            images, texts, pairs = embed_pairs(self.model, part)
            metrics = evaluate_retrieval(images, texts, pairs.caption_to_image())
            metrics = named_by_modality(metrics, pairs)
            recalls |= {f"val_{name}": value for name, value in metrics.items() if "_R@" in name}
        logs |= recalls | {RECALL_SUM: sum(recalls.values())}


class KeepBest(keras.callbacks.Callback):
    """Save the model after the epoch with the highest `val_recall_sum`, whole or not at all;
    without a validation set, after every epoch.

    Keras' ModelCheckpoint would forget the best epoch when a killed run resumes; here the choice
    follows from the metrics of all epochs.

    Args:
        model: The model to save: that which is trained, or one that shares its weights.
        path: The `.keras` file.
        epochs: Metrics of the epochs before, of a killed run.

    Attributes:
        epochs: Metrics of all epochs so far.
        best_epoch: The number of the epoch that is saved; the first is 1.
    """

    def __init__(
        self,
        model: keras.Model,
        path: str | os.PathLike,
        epochs: Sequence[dict[str, float]] = (),
    ):
        super().__init__()
        self.saved = model
        self.path = Path(path)
        self.epochs = list(epochs)

    @property
    def best_epoch(self) -> int:
        numbers = range(len(self.epochs))
        return 1 + max(numbers, key=lambda n: (self.epochs[n].get(RECALL_SUM, n), -n))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({name: float(value) for name, value in (logs or {}).items()})
        if self.best_epoch < len(self.epochs):
            return
        try:
            with replaced_file(self.path) as temporary:
                self.saved.save(temporary)
        except BaseException:
            self.epochs.pop()  # it may be Ctrl-C
            raise
