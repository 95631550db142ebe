"""What all caches share: rows on disk that are known by the content of their sources."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from mmret_tf.data.collection import Collection
from mmret_tf.data.sources import Source, identities
from mmret_tf.models.encoder import Encoder
from mmret_tf.models.fingerprint import weights_digest
from mmret_tf.models.towers.tower import Tower
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore

Items = TypeVar("Items", bound=Collection)

# Parts of a tower's configuration that are not those of its frozen layers.
IGNORED = ("head", "name", "trainable", "frozen", "region_layers", "region_pool")


@dataclass(frozen=True, slots=True)
class CachedSource(Source):
    """A source that reads as the digest of the original: the key of what is cached."""

    origin: Source

    @property
    def identity(self) -> str:  # what is embedded is the content of the original
        return self.origin.identity

    @property
    def record(self) -> str:
        return self.origin.record

    @property
    def name(self) -> str:
        return self.origin.name

    @property
    def is_identified(self) -> bool:
        return self.origin.is_identified

    @property
    def identity_stamp(self) -> tuple[int, int] | None:
        return self.origin.identity_stamp

    def read(self) -> bytes:
        return self.origin.identity.encode()


def as_cached(collection: Items, modality: str) -> Items:
    """The same items; the sources of one modality read as their digests.

    Args:
        collection: Items, or `Pairs`.
        modality: Name of the modality.

    >>> import mmret_tf as mm
    >>> pairs = as_cached(mm.load_pairs("scenes", split="dev", size=2), "image")
    >>> len(pairs.first_sources[0].read())  # the SHA-256 of the picture
    64
    """
    same = collection.subset(range(len(collection)))
    same.sources[modality] = [
        [CachedSource(source) for source in each] for each in collection.sources.get(modality, [])
    ]
    return same


def frozen_digest(tower: Tower, said: Any) -> str:
    """The identity of what a tower's frozen layers give.

    Args:
        tower: The tower; its head does not count.
        said: What else is done to a source, a JSON value.

    Raises:
        ValueError: The layers are not frozen.
    """
    config = tower.get_config()
    config = {name: config[name] for name in config if name not in IGNORED}
    layers = [layer for layer in tower.layers if layer is not tower.head]
    if any(layer.trainable_weights for layer in layers):
        raise ValueError(f"the features of {tower.name} change in training: freeze its backbone")
    weights = [weight for layer in layers for weight in layer.weights]
    return weights_digest(json.dumps([config, said], sort_keys=True, default=str), weights)


def store_by_content(
    encoder: Encoder,
    modality: str,
    sources: Iterable[Source],
    directory: str | os.PathLike,
    dtype: str = "float32",
) -> EmbeddingStore:
    """A store with one row for each content that there is; its ids are the content digests.

    It is read again where the folder holds it, and an interrupted computation resumes.

    Args:
        encoder: Makes the rows; its fingerprint names all that decides them.
        modality: Of the sources.
        sources: The sources.
        directory: Folder of the store.
        dtype: As for `EmbeddingStore.export`, also for the errors.
    """
    sources = list(sources)
    source_of = dict(zip(identities(sources), sources, strict=True))
    try:
        store = EmbeddingStore.open(directory)
        found = store.fingerprint, store.made_by["dtype"], store.ids
        if found == (encoder.fingerprint, dtype, list(source_of)):
            return store
    except ValueError:  # none yet, or one that was interrupted
        pass
    rows = Collection(list(source_of), {modality: [[each] for each in source_of.values()]})
    return EmbeddingStore.export(encoder, rows, directory, dtype)
