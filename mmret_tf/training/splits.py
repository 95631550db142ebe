"""The splits of a run (数据划分): what is trained on, judged on and searched."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmret_tf.data.collection import Collection
from mmret_tf.data.drawn.files import KINDS
from mmret_tf.data.loading import load
from mmret_tf.data.pairs import Pairs
from mmret_tf.data.sources import Source
from mmret_tf.training.config import TrainConfig


class Splits(NamedTuple):
    """What a run uses.

    Attributes:
        training: The pairs to train on: those of each modality with its captions.
        development: Those of the development split, if it has any.
        gallery: The whole collection, items without pairs included; for drawn data, the
            development split.
    """

    training: tuple[Pairs, ...]
    development: tuple[Pairs, ...]
    gallery: Collection

    @property
    def modalities(self) -> list[str]:
        """What is learned to belong to captions."""
        return [part.modalities[0] for part in self.training]

    @classmethod
    def of(cls, gallery: Collection, modalities: Sequence[str] = ("image",)) -> "Splits":
        """The splits of a collection of one's own.

        Args:
            gallery: The collection.
            modalities: What is learned to belong to captions.

        Raises:
            ValueError: No item of the training split has one of them and a caption.
        """
        training = gallery.split("train")
        pairs = tuple(training.pairs(name) for name in modalities)
        if "dev" not in gallery.splits:
            return cls(pairs, (), gallery)
        development = gallery.split("dev")
        named = [name for name in modalities if development.has_pairs(name)]
        return cls(pairs, tuple(development.pairs(name) for name in named), gallery)

    def checked(self) -> "Splits":
        """The same splits without the files that are damaged."""
        if self.gallery.is_checked:
            return self
        return Splits.of(self.gallery.checked(), self.modalities)

    def captions(self) -> list[str]:
        """Those of the training split."""
        return [caption for part in self.training for caption in part.all_captions()]

    def all_sources(self, modality: str) -> list[Source]:
        """All sources of a modality, those of the gallery first, which has the development split.

        Args:
            modality: Its name.
        """
        parts = [self.gallery, *self.training]
        groups = [part.sources.get(modality, []) for part in parts]
        return [source for each in itertools.chain(*groups) for source in each]

    def each(self, change: Callable[[Collection], Collection]) -> "Splits":
        """The same splits after a change of each part.

        Args:
            change: Of a collection, such as `FeatureCache.cached`.
        """
        training, development = (tuple(map(change, parts)) for parts in self[:2])
        return Splits(training, development, change(self.gallery))

    @classmethod
    def load(cls, config: TrainConfig) -> "Splits":
        """Load the collection of a configuration.

        Args:
            config: The recipe. With `audio` or `video`, pictures are learned as well if the
                collection has pictures with captions.
        """
        named = [name for name in ("audio", "video") if getattr(config, name)]
        if config.data in KINDS:
            gallery = load(config.data, "dev", 200, config.seed)
            training = load(config.data, "train", config.scenes, config.seed)
            modality = KINDS[config.data].modality
            if other := [name for name in named if name != modality]:
                raise ValueError(f"{config.data} have no {other[0]}")
            return cls((training.pairs(modality),), (gallery.pairs(modality),), gallery)
        collection = load(config.data, check=config.check, **config.form)
        if not named or collection.has_pairs():
            named.insert(0, "image")
        return cls.of(collection, named)
