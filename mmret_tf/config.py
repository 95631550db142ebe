"""TrainConfig: everything that decides a training run, checked, and saved with it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from pathlib import Path

from mmret_tf.towers import RNNS, TEXT_POOLINGS

LISTS = {"tuple[int, ...]": int, "tuple[str, ...]": str}
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run; saved as the run's `config.json`. Sections 3.1(4) and 5.

    Args:
        data: "scenes", or a collection that `load_items` knows.
        scenes: number of training scenes, where data is "scenes".
        backbone: a name in `keras.applications`, "SmallCNN", or a `.keras` file.
        weights: "imagenet", "none" or a `.weights.h5` file; of a named backbone.
        image_size: side of the pictures, in pixels.
        feature_layers, scales, members, embedding_dim, rnn, word_dim, units, pooling,
            bag_of_words: see `towers`.
        dropout: in both towers.
        min_crop, captions_per_image: see `PairDataset.as_dataset`.
        feature_views: of a frozen backbone, how many views of each training image are kept: 1 for
            the plain picture alone, see `features.feature_views`.
        max_tokens, sequence_length: see `TextPreprocessor`.
        epochs: each shows every training image once, with `captions_per_image` of its captions.
        batch_size: pairs a step; every other pair of the batch is a negative.
        learning_rate: the highest; it rises to that for a tenth of the steps, then falls to 0 along
            a cosine.
        weight_decay: of AdamW (arXiv 1711.05101), for matrices and kernels alone: not for biases,
            scales and word vectors; 0 for plain Adam.
        clip_norm: a longer gradient, over all weights, is shortened to this; 0 for never.
        weight_averaging: share of the old in the running mean of the weights that is evaluated and
            saved in their place (arXiv 1803.05407; Keras' EMA), say 0.99; 0 for none.
        patience: training ends after so many epochs in a row without a better `val_recall_sum`;
            0 for never.
        accumulation_steps: gradients of so many batches are averaged for one step of the optimizer,
            where a larger batch does not fit into memory; negatives come from a batch alone.
        precision: of what is built: "float32", or "mixed_bfloat16" or "mixed_float16" (Keras'
            mixed precision, 混合精度; weights stay float32). A model from a `.keras` file keeps its
            own.
        initial_model: a run's `model.keras` to go on from, with its towers and its vocabulary; the
            settings above that shape them do not count then.
        thaw_from: the layer from which on a pretrained backbone is trained too, see
            `backbones.thaw`; "" for none.
        thawed_rate: share of the learning rate for those layers.
        seed: of the weights, the order, the captions, the crops and the scenes.

    Raises:
        ValueError: a value of another type, a number out of its range, or a choice that there is
            not.

    >>> config = TrainConfig(data="photos", epochs=5)
    >>> config.backbone, config.batch_size
    ('ResNet50', 256)
    >>> TrainConfig(epochs=0)
    Traceback (most recent call last):
    ValueError: epochs must be above 0; got 0
    """

    data: str = "scenes"
    scenes: int = 2000
    backbone: str = "ResNet50"
    weights: str = "imagenet"
    image_size: int = 224
    feature_layers: tuple[str, ...] = ()
    scales: tuple[int, ...] = ()
    members: int = 1
    embedding_dim: int = 512
    rnn: str = "lstm"
    word_dim: int = 300
    units: int = 512
    pooling: str = "max"
    bag_of_words: bool = True
    dropout: float = 0.3
    min_crop: float = 0.8
    captions_per_image: int = 2
    feature_views: int = 1
    max_tokens: int = 8000
    sequence_length: int = 32
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    clip_norm: float = 0.0
    weight_averaging: float = 0.0
    patience: int = 0
    accumulation_steps: int = 1
    precision: str = "float32"
    initial_model: str = ""
    thaw_from: str = ""
    thawed_rate: float = 0.1
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in LISTS:
                kind = LISTS[field.type]
                is_right = isinstance(value, (tuple, list)) and all(
                    isinstance(each, kind) and not isinstance(each, bool) for each in value
                )
                object.__setattr__(self, field.name, tuple(value) if is_right else value)
            else:
                # Where a fraction is asked for, a whole number will do; True is no number.
                kinds = {"str": str, "bool": bool, "int": int, "float": (int, float)}[field.type]
                is_right = isinstance(value, kinds) and isinstance(value, bool) == (kinds is bool)
            if not is_right:
                raise ValueError(f"{field.name} must be of type {field.type}; got {value!r}")
        if min(self.scales, default=1) < 1:
            raise ValueError(f"scales must be sides in pixels, above 0; got {list(self.scales)}")
        above_zero = ("scenes", "image_size", "epochs", "batch_size", "learning_rate")
        above_zero += ("captions_per_image", "feature_views", "accumulation_steps", "thawed_rate")
        for name in above_zero:
            if not getattr(self, name) > 0:  # NaN is neither
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        if self.batch_size < 2 * self.captions_per_image:
            raise ValueError(
                "batch_size must be at least twice captions_per_image: negatives are the other "
                f"images of a batch; got {self.batch_size} and {self.captions_per_image}"
            )
        choices = {"rnn": RNNS, "pooling": TEXT_POOLINGS, "precision": PRECISIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        for name in ("dropout", "weight_averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1; got {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm", "patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be below 0; got {getattr(self, name)}")

    @classmethod
    def load(cls, path: str | os.PathLike) -> TrainConfig:
        """Read a configuration, as a run's `config.json` holds it; what it leaves out is default.

        Args:
            path: a JSON file, an object of settings.

        Raises:
            ValueError: there is no such file, it is no JSON object, or it has an unknown key or a
                value that cannot be; the message names the closest key that there is.

        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = file.write_text('{"epochs": 3}')
        >>> TrainConfig.load(file).epochs
        3
        """
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} is no JSON file of settings: {error}") from None
        if not isinstance(settings, dict):
            raise ValueError(f"{os.fspath(path)} must hold a JSON object of settings")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
                raise ValueError(f"unknown setting {name!r} in {os.fspath(path)}; {hint}")
        return cls(**settings)
