"""Drawn data as files: a collection in a folder of its own, or in a cache under the Keras home."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmret_tf._files import keras_home
from mmret_tf.data.drawn.clips import draw_clips
from mmret_tf.data.drawn.scenes import draw_scenes
from mmret_tf.data.drawn.sounds import draw_sounds
from mmret_tf.data.drawn.worlds import draw_worlds

# Part of the names of cached folders: increase it with every change to drawings or captions.
DRAWING_VERSION = 2


class Kind(NamedTuple):
    """One kind of drawn data.

    Attributes:
        draw: Function of split, size and seed; its items have `id`, `captions`, `attributes`, and
            `encode()`, the content of a file, or of several in a list.
        modality: Of the files.
        suffix: Of their names.
    """

    draw: Callable[[str, int, int], Sequence[Any]]
    modality: str
    suffix: str


KINDS = {
    "scenes": Kind(draw_scenes, "image", ".png"),
    "clips": Kind(draw_clips, "video", ".gif"),
    "sounds": Kind(draw_sounds, "audio", ".wav"),
    "worlds": Kind(draw_worlds, "image", ".png"),
}


def write_drawn(
    kind: str,
    folder: str | os.PathLike[str],
    split: str = "train",
    size: int = 2000,
    seed: int = 0,
) -> Path:
    """Draw items of one kind as files, with `captions.jsonl` beside them. Section 2.1.

    Each line of `captions.jsonl` (UTF-8) is an object with "id", the name of the file under its
    modality, such as "image" (a list under "images" if there are several), and "captions", "split"
    and "attributes". The files are written to a temporary folder, which is renamed at the end, so
    the folder is never incomplete.

    Args:
        kind: One of `KINDS`.
        folder: Path of a new folder, or of an empty one, which is replaced.
        split, size, seed: As for `draw_scenes`.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: The kind is unknown, the folder is not empty, or as for `draw_scenes`.
        OSError: The folder cannot be written.

    >>> import tempfile
    >>> folder = write_drawn("scenes", Path(tempfile.mkdtemp()) / "scenes", "test", size=2)
    >>> sorted(path.name for path in folder.iterdir())
    ['0000.png', '0001.png', 'captions.jsonl']
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    folder = Path(folder).resolve()
    _check_free(folder)
    drawn = KINDS[kind].draw(split, size, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        with open(temporary / "captions.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for number, item in enumerate(drawn):
                files = _write_files(item, temporary / f"{number:04}", *KINDS[kind][1:])
                line = {"id": item.id, **files, "captions": item.captions, "split": split}
                line["attributes"] = item.attributes
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        with contextlib.suppress(OSError):  # Windows does not rename over an empty folder
            folder.rmdir()
        try:
            temporary.rename(folder)
        except OSError:
            _check_free(folder)  # another process may have filled it in the meantime
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a failure; otherwise it was renamed
    return folder


def _write_files(item: Any, stem: Path, modality: str, suffix: str) -> dict[str, Any]:
    """Write an item's files as "0001.png", "0001-1.png" and so on; return its line's names."""
    contents = item.encode()
    if isinstance(contents, bytes):
        contents = [contents]
    names = []
    for place, content in enumerate(contents):
        name = f"{stem.name}-{place}" if place else stem.name
        names.append(name + suffix)
        stem.with_name(names[-1]).write_bytes(content)
    if len(names) == 1:
        return {modality: names[0]}
    return {f"{modality}s": names} if names else {}


def cached_drawn(kind: str, split: str = "train", size: int = 2000, seed: int = 0) -> Path:
    """Folder of drawn data in the Keras home, written at the first call and then reused.

    It is under `$KERAS_HOME` (`~/.keras` by default) and may be deleted at any time. If two
    processes draw the same data at once, both use the folder of the first to finish.

    Args:
        kind, split, size, seed: As for `write_drawn`.

    Raises:
        ValueError: As for `write_drawn`, or the folder holds other files.
        OSError: The Keras home cannot be written.

    >>> cached_drawn("scenes", "dev", size=2, seed=7).name
    'v2-dev-2-7'
    """
    name = f"v{DRAWING_VERSION}-{split}-{size}-{seed}"
    folder = keras_home() / "datasets" / f"mmret_{kind}" / name
    try:
        write_drawn(kind, folder, split, size, seed)
    except ValueError:  # the files exist already, unless the arguments are wrong
        if not (folder / "captions.jsonl").is_file():
            raise
    return folder


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = "holds files already" if folder.is_dir() else "is a file"
        raise ValueError(f"folder must be new or empty; {folder} {problem}, choose another")
