"""TrainConfig: everything that decides a training run, checked, and saved with it."""

import dataclasses
import difflib
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The settings that `load` takes as the form of a table.
FORM = ("image_column", "caption_column", "separator", "encoding")
LISTS = {"feature_layers": str, "scales": int, "corner_crops": float, "region_layers": str}
ABOVE_ZERO = (
    *("scenes", "image_size", "epochs", "batch_size", "learning_rate"),
    *("captions_per_image", "feature_views", "reranker_epochs", "rate", "seconds", "frames"),
    *("region_pool", "region_views"),
)
MOST, HIGHEST_RATE = 2**20, 1000  # of every number of things, and of rates
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run; saved as the run's `config.json`. Section 5.

    Args:
        data: "scenes", "clips", "sounds" or "worlds", or a collection that `load` knows.
        image_column: Name of a table's column of images, if it is unusual.
        caption_column: Name of a table's column of captions, if it is unusual; "label" makes the
            class of a picture its caption.
        separator: Of a table: a comma, a semicolon, "tab" or |; by default it is found.
        encoding: Of captions files, such as gbk; by default UTF-8, or UTF-16 if its mark says so.
        check: Whether all files are decoded before training; otherwise each is checked when it is
            first needed. Damaged ones are set aside either way.
        audio, video: Whether to learn the sounds and the clips of the collection. Pictures are
            learned as well if it has any.
        scenes: Number of training items, where data is "scenes", "clips", "sounds" or "worlds".
        backbone: A name in `keras.applications`, "SmallCNN", or a `.keras` file.
        weights: "imagenet", "none" or a `.weights.h5` file; of a named backbone.
        image_size: Side of the pictures, in pixels.
        feature_layers, scales, min_crop, corner_crops: See `image_tower`.
        rate, seconds: See `audio_tower`.
        frames: See `video_tower`, which has the backbone and the settings of pictures.
        members, embedding_dim: See `image_tower` and `text_tower`.
        rnn, word_dim, units, pooling, bag_of_words: See `text_tower`.
        dropout: In both towers.
        captions_per_image: See `Pairs.as_dataset`.
        feature_views: Number of views of each training image that are cached for a frozen backbone,
            see `FeatureCache`; 1 for the plain picture alone.
        max_tokens, sequence_length: See `TextPreprocessor`.
        epochs: Each shows every training image once, with `captions_per_image` of its captions.
        batch_size: Pairs a step; every other pair of the batch is a negative.
        learning_rate: The highest; it rises for a tenth of the steps, then falls to 0 along a
            cosine.
        weight_decay: Of AdamW (arXiv 1711.05101), for matrices and kernels alone: not for biases,
            scales and word vectors; 0 for plain Adam.
        precision: Of new towers: "float32", or "mixed_bfloat16" or "mixed_float16" (Keras' mixed
            precision, 混合精度; weights stay float32).
        initial_model: A run's `model.keras` to continue from, with its towers and vocabulary; the
            settings above that shape them are ignored.
        thaw_from: Name of the layer from which on a pretrained backbone is fine-tuned (微调), at a
            tenth of the learning rate, see `thaw`; "" for none.
        reranker: Whether to train a second stage as well, see `Reranker`.
        reranker_epochs: Its epochs; each shows every training image once, with one caption.
        region_layers, region_pool: What it reads of pictures, see `ImageTower.set_regions`.
        region_views: Number of views of each training image whose regions are cached.
        seed: Of the weights, the order, the captions, the crops and the scenes.

    Raises:
        ValueError: A value of another type, a number out of its range, or an unknown choice.

    >>> config = TrainConfig(data="photos", epochs=5)
    >>> config.backbone, config.batch_size
    ('ResNet50', 256)
    >>> TrainConfig(epochs=0)
    Traceback (most recent call last):
    ValueError: epochs must be above 0; got 0
    """

    data: str = "scenes"
    image_column: str = ""
    caption_column: str = ""
    separator: str = ""
    encoding: str = ""
    check: bool = True
    audio: bool = False
    video: bool = False
    scenes: int = 2000
    backbone: str = "ResNet50"
    weights: str = "imagenet"
    image_size: int = 224
    feature_layers: tuple[str, ...] = ()
    scales: tuple[int, ...] = ()
    rate: int = 16000
    seconds: float = 5.0
    frames: int = 8
    members: int = 1
    embedding_dim: int = 512
    rnn: str = "lstm"
    word_dim: int = 300
    units: int = 512
    pooling: str = "max"
    bag_of_words: bool = True
    dropout: float = 0.3
    min_crop: float = 0.8
    corner_crops: tuple[float, ...] = ()
    captions_per_image: int = 2
    feature_views: int = 1
    max_tokens: int = 8000
    sequence_length: int = 32
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    precision: str = "float32"
    initial_model: str = ""
    thaw_from: str = ""
    reranker: bool = False
    reranker_epochs: int = 20
    region_layers: tuple[str, ...] = ()
    region_pool: int = 1
    region_views: int = 1
    seed: int = 0

    def __post_init__(self):
        from mmret_tf.models.towers.text import RNNS, TEXT_POOLINGS  # slow to import

        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is tuple:
                is_right = isinstance(value, tuple | list)
                is_right = is_right and all(type(each) is LISTS[field.name] for each in value)
                object.__setattr__(self, field.name, tuple(value) if is_right else value)
            else:  # where a fraction is expected, a whole number will do
                is_right = type(value) in ((int, float) if kind is float else (kind,))
            if not is_right:
                expected = inspect.formatannotation(field.type)
                raise ValueError(f"{field.name} must be of type {expected}; got {value!r}")
        choices = {"rnn": RNNS, "pooling": TEXT_POOLINGS, "precision": PRECISIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                expected = ", ".join(known)
                raise ValueError(f"{name} must be one of {expected}; got {getattr(self, name)!r}")
        for name, holds, expected in self._rules():
            if not holds(getattr(self, name)):  # NaN is never right
                raise ValueError(f"{name} must be {expected}; got {getattr(self, name)}")

    @property
    def form(self) -> dict[str, str]:
        """How to read the collection: what `load` takes beside its path."""
        return {name: getattr(self, name) for name in FORM}

    def _rules(self) -> list[tuple[str, Callable[[Any], bool], str]]:
        """Names of settings, what must hold of each, and the same in words."""
        counts = [field.name for field in dataclasses.fields(self) if field.type is int]
        return [
            *((name, lambda value: value > 0, "above 0") for name in ABOVE_ZERO),
            *(
                (name, lambda value: value <= MOST, f"at most {MOST:,}")
                for name in counts
                if name != "seed"
            ),
            ("seed", lambda seed: 0 <= seed < 2**32, "from 0 to 2**32 - 1"),
            ("scales", lambda sides: min(sides, default=1) > 0, "sides in pixels, above 0"),
            ("dropout", lambda share: 0 <= share < 1, "from 0 to below 1"),
            ("min_crop", lambda share: 0 < share <= 1, "above 0 and at most 1"),
            (
                "corner_crops",
                lambda shares: all(0 < share < 1 for share in shares),
                "shares above 0 and below 1",
            ),
            ("learning_rate", lambda rate: rate < HIGHEST_RATE, f"below {HIGHEST_RATE}"),
            ("weight_decay", lambda decay: 0 <= decay < HIGHEST_RATE, f"0 to {HIGHEST_RATE}"),
            (
                "batch_size",
                lambda pairs: pairs >= 2 * self.captions_per_image,
                "at least twice captions_per_image: negatives are the other images of a batch",
            ),
        ]

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TrainConfig":
        """Read a configuration, such as a run's `config.json`; other settings have their defaults.

        Args:
            path: A JSON file, an object of settings.

        Raises:
            ValueError: There is no such file, it is not a JSON object, a key is unknown (the
                message names the closest one), or a value is invalid.

        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = file.write_text('{"epochs": 3}')
        >>> TrainConfig.load(file).epochs
        3
        """
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} is not a JSON file of settings: {error}") from None
        if not isinstance(settings, dict):
            raise ValueError(f"{os.fspath(path)} must hold a JSON object of settings")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
                raise ValueError(f"unknown setting {name!r} in {os.fspath(path)}; {hint}")
        return cls(**settings)


def setting_help() -> dict[str, str]:
    """What each setting is for, from the docstring of `TrainConfig`.

    >>> setting_help()["seed"]
    'Of the weights, the order, the captions, the crops and the scenes.'
    """
    described = inspect.getdoc(TrainConfig).split("Args:\n")[1].split("\nRaises:")[0]
    entries = re.findall(r"^    (\w[\w, \n]*?): (.*?)(?=^    \w|\Z)", described, re.M | re.S)
    return {
        name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")
    }
