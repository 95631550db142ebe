"""The splits of a run (数据划分): what is trained on, judged on and searched."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from mmret_tf.data.collection import Collection
from mmret_tf.data.loading import load
from mmret_tf.data.pairs import Pairs
from mmret_tf.data.sources import Source
from mmret_tf.training.config import TrainConfig


class Splits(NamedTuple):
    """What a run uses.

    Attributes:
        training: The pairs to train on.
        development: Those of the development split, if it has any.
        gallery: The whole collection, items without pairs included; for drawn scenes, the
            development split.
    """

    training: Pairs
    development: Pairs | None
    gallery: Collection

    @classmethod
    def of(cls, gallery: Collection) -> "Splits":
        """The splits of a collection of one's own.

        Args:
            gallery: The collection.
        """
        training = gallery.split("train")
        development = gallery.split("dev") if "dev" in gallery.splits else None
        has_pairs = development is not None and development.has_pairs()
        return cls(training.pairs(), development.pairs() if has_pairs else None, gallery)

    def all_sources(self, modality: str) -> list[Source]:
        """All sources of a modality, those of the gallery first, which has the development split.

        Args:
            modality: Its name.
        """
        groups = [*self.gallery.sources.get(modality, []), *self.training.sources[modality]]
        return list(itertools.chain(*groups))

    def each(self, change: Callable[[Collection], Collection]) -> "Splits":
        """The same splits after a change of each.

        Args:
            change: Of a collection, such as `FeatureCache.cached`.
        """
        return Splits(*(part and change(part) for part in self))

    @classmethod
    def load(cls, config: TrainConfig) -> "Splits":
        """Load the collection of a configuration.

        Args:
            config: The recipe.
        """
        if config.data == "scenes":
            gallery = load("scenes", "dev", 200, config.seed)
            training = load("scenes", "train", config.scenes, config.seed)
            return cls(training.pairs(), gallery.pairs(), gallery)
        return cls.of(load(config.data, check=config.check, **config.form))
