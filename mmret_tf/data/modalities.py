"""Modalities (模态): suffixes, check, decoder and thumbnail of each kind of content.

To add one, write a decoder in `data/decoders/` and a tower in `models/towers/`, and register it
here. Collections, encoders, searches and exports then go by its name.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmret_tf.data.decoders import clips, pictures, sounds
from mmret_tf.data.decoders.text_cards import text_thumbnail
from mmret_tf.data.sources import Source, file_or_bytes


@dataclass(frozen=True)
class Modality:
    """One kind of content. Section 2.1.

    Attributes:
        name: Name in collections, encoders and signatures.
        suffixes: Suffixes of its files, in lower case; empty if records hold the content itself.
        check: Function of encoded bytes; ValueError, with the reason, if they cannot be used.
        thumbnail: Function of encoded bytes and a side in pixels; a square picture for galleries.
        as_source: Function from a user's value (a path, bytes, an array) to a `Source`.
        in_graph: Function from encoded bytes to those that a tower's graph decodes, for formats
            that TensorFlow does not read; bytes of others stay as they are.
        takes_folders: Whether a folder of files, such as one of frames, is a source as well.
        playable: Function from encoded bytes to a media type and the bytes that a page plays;
            `None` for a modality whose thumbnail shows all.
        sample: A user's value, small, with which a server is warmed up; `None` for no warm-up.

    >>> text = get_modality("text")
    >>> text.is_file, text.as_source("红色的圆").read().decode()
    (False, '红色的圆')
    """

    name: str
    suffixes: tuple[str, ...]
    check: Callable[[bytes], None]
    thumbnail: Callable[[bytes, int], Image.Image]
    as_source: Callable[[Any], Source] = file_or_bytes
    in_graph: Callable[[bytes], bytes] = bytes
    takes_folders: bool = False
    playable: Callable[[bytes], tuple[str, bytes]] | None = None
    sample: Any = None

    @property
    def is_file(self) -> bool:
        """Whether its sources are files. Otherwise records hold the content itself."""
        return bool(self.suffixes)

    def read(self, source: Source) -> bytes:
        """The content of a source, as a tower's graph decodes it; ValueError if it cannot be."""
        content = source.read()
        try:
            return self.in_graph(content)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from None

    def sources(self, values: Sequence[Any]) -> list[Source]:
        """Turn users' values into sources.

        Args:
            values: A list of paths, bytes, arrays, texts or sources, as the modality takes them.

        Raises:
            ValueError: `values` is a single value, or one of them cannot be used.
        """
        if isinstance(values, str | bytes | os.PathLike) or not hasattr(values, "__len__"):
            raise ValueError(f"expected a list of {self.name}s; for one {self.name}, give a list")
        return [each if isinstance(each, Source) else self.as_source(each) for each in values]


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function of a decoder, imported at its first call: clients have no TensorFlow."""

    def call(*arguments: Any) -> Any:
        decoder = importlib.import_module(f"mmret_tf.data.decoders.{module}")
        return getattr(decoder, name)(*arguments)

    return call


# An extender adds an entry here, or calls `register_modality`.
MODALITIES = {
    modality.name: modality
    for modality in (
        Modality(
            "image",
            pictures.SUFFIXES,
            _later("image", "check_image"),
            pictures.picture_thumbnail,
            pictures.picture_source,
            sample=pictures.encode_png(np.full((64, 64), 128)),
        ),
        Modality(
            "text",
            (),
            _later("text", "check_text"),
            text_thumbnail,
            _later("text", "text_source"),
            sample="warm up 预热",
        ),
        Modality(
            "audio",
            sounds.SUFFIXES,
            _later("audio", "check_audio"),
            _later("audio", "audio_thumbnail"),
            sounds.sound_source,
            sounds.as_wav,
            playable=_later("audio", "playable_audio"),
            sample=(np.zeros(800), 8000),
        ),
        Modality(
            "video",
            clips.SUFFIXES,
            _later("video", "check_video"),
            _later("video", "video_thumbnail"),
            clips.clip_source,
            clips.as_frames,
            takes_folders=True,
            playable=_later("video", "playable_video"),
            sample=clips.encode_frames(np.full((2, 64, 64), 128)),
        ),
    )
}


def file_modalities() -> list[Modality]:
    """The modalities whose sources are files, in the order in which they were registered.

    >>> [modality.name for modality in file_modalities()][0]
    'image'
    """
    return [modality for modality in MODALITIES.values() if modality.is_file]


def register_modality(modality: Modality) -> Modality:
    """Register a modality under its name, in place of one with the same name.

    Args:
        modality: The modality.

    Returns:
        The same.

    >>> register_modality(MODALITIES["text"]).name
    'text'
    """
    MODALITIES[modality.name] = modality
    return modality


def get_modality(name: str) -> Modality:
    """The modality with this name.

    Args:
        name: "image", "text", or one that was registered.

    Raises:
        ValueError: The name is not registered. The message lists the names that are.

    >>> get_modality("image").suffixes[:2]
    ('.jpg', '.jpeg')
    """
    if name not in MODALITIES:
        raise ValueError(f"no modality {name!r}; there are: {', '.join(sorted(MODALITIES))}")
    return MODALITIES[name]
