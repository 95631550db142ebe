"""What happens at the end of an epoch: recall is measured, and the best model is kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from mmret_tf.datasets import PairDataset
from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.measuring import embed_pairs

RECALL_SUM = "val_recall_sum"


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Put the running mean of the weights in their place for a while, if the optimizer keeps one.

    Keras' SwapEMAWeights leaves them there when an epoch ends, and a backup would hold the mean
    for the weights.
    """
    # With float16, Keras puts an optimizer that scales the loss around ours.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    weights = [variable.numpy() for variable in model.trainable_variables]
    optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value)


class EpochSeeds(keras.callbacks.Callback):
    """Let what dropout draws follow from the number of the epoch, so that a run that was killed
    goes on as it would have: Keras saves the weights, and not the state of its generators.
    """

    def on_epoch_begin(self, epoch, logs=None):
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":  # a seed, and how often it was drawn
                seed = variable.numpy()[0]
                drawn = epoch * 2**20  # an epoch has fewer steps than that
                variable.assign(np.array([seed, drawn], variable.dtype))


class RetrievalMetrics(keras.callbacks.Callback):
    """Report recall on a validation set after each epoch, of the averaged weights if there are
    such, as `val_i2t_R@1`, `val_t2i_R@10` and so on, fractions 0 to 1; `val_recall_sum` is the sum
    of all six. Section 3.1(5).

    Args:
        pairs: the validation set.
        features: the backbone's features of its images, `[n_images, features]`, if known.

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, trainable=False)
    >>> model = mm.DualEncoder(image, mm.text_tower(text.vocabulary_size()), text)
    >>> model.compile("adam", mm.losses.ContrastiveCosine())
    >>> features = np.eye(4, 256)  # of `backbone_features`; leave them out to decode pictures
    >>> dataset = pairs.as_dataset(model, batch_size=4, training=True, features=features)
    >>> measured = RetrievalMetrics(pairs, features)  # in earnest, of pictures not trained on
    >>> history = model.fit(dataset, callbacks=[measured], verbose=0)
    >>> sorted(history.history)[:3], history.history["val_t2i_R@10"]  # among 4 pictures
    (['loss', 'spread', 'val_i2t_R@1'], [1.0])
    """

    def __init__(self, pairs: PairDataset, features: np.ndarray | None = None):
        super().__init__()
        self.pairs = pairs
        self.features = features

    def on_epoch_end(self, epoch, logs=None):
        with averaged_weights(self.model):
            images, texts, pairs = embed_pairs(self.model, self.pairs, self.features)
        metrics = evaluate_retrieval(images, texts, pairs.caption_to_image())
        recalls = {f"val_{name}": value for name, value in metrics.items() if "_R@" in name}
        logs |= recalls | {RECALL_SUM: sum(recalls.values())}


class KeepBest(keras.callbacks.Callback):
    """Save the model of the epoch with the highest `val_recall_sum`, whole or not at all; without
    a validation set, that of the last epoch. It ends the training when no better one comes.

    Keras' EarlyStopping would count anew when a killed run goes on; here all of it follows from
    the metrics of the epochs.

    Args:
        path: the `.keras` file.
        patience: so many epochs in a row may be no better than the best; 0 for any number.
        epochs: metrics of the epochs that came before, of a killed run.

    Attributes:
        epochs: metrics of all epochs so far.
        best_epoch: the number of the epoch that is saved; the first is 1.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        patience: int = 0,
        epochs: Sequence[dict[str, float]] = (),
    ):
        super().__init__()
        self.path = Path(path)
        self.patience = patience
        self.epochs = list(epochs)

    @property
    def best_epoch(self) -> int:
        numbers = range(len(self.epochs))
        return 1 + max(numbers, key=lambda n: (self.epochs[n].get(RECALL_SUM, n), -n))

    @property
    def is_done(self) -> bool:
        """Whether the patience is at its end."""
        return bool(self.epochs) and 0 < self.patience <= len(self.epochs) - self.best_epoch

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({name: float(value) for name, value in (logs or {}).items()})
        if self.best_epoch < len(self.epochs):
            self.model.stop_training = self.is_done
            return
        temporary = self.path.with_suffix(".partial.keras")
        try:
            with averaged_weights(self.model):
                self.model.save(temporary)
            os.replace(temporary, self.path)
        except BaseException:
            self.epochs.pop()  # it may be Ctrl-C
            raise
        finally:
            temporary.unlink(missing_ok=True)
