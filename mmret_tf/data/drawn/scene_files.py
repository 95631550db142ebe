"""Scenes as files: a collection in a folder of its own, or in a cache under the Keras home."""

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path

from mmret_tf.data.drawn.scenes import draw_scenes

# Part of the names of cached folders: increase it with every change to drawings or captions.
DRAWING_VERSION = 2


def write_scenes(
    folder: str | os.PathLike[str], split: str = "train", size: int = 2000, seed: int = 0
) -> Path:
    """Draw scenes as PNG files, with `captions.jsonl` beside them, into a new folder. Section 2.1.

    Each line of `captions.jsonl` (UTF-8) is an object with "id", "image" (the name of the file),
    "captions", "split" and "attributes". The files are written to a temporary folder, which is
    renamed at the end, so the folder is never incomplete.

    Args:
        folder: Path of a new folder, or of an empty one, which is replaced.
        split, size, seed: As for `draw_scenes`.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: The folder is not empty, or as for `draw_scenes`.
        OSError: The folder cannot be written.

    >>> import tempfile
    >>> folder = write_scenes(Path(tempfile.mkdtemp()) / "scenes", "test", size=2)
    >>> sorted(path.name for path in folder.iterdir())
    ['0000.png', '0001.png', 'captions.jsonl']
    """
    folder = Path(folder).resolve()
    _check_free(folder)
    scenes = draw_scenes(split, size, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        with open(temporary / "captions.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for i, scene in enumerate(scenes):
                name = f"{i:04}.png"
                scene.draw().save(temporary / name, compress_level=1)
                line = {"id": scene.id, "image": name, "captions": scene.captions, "split": split}
                line["attributes"] = scene.attributes
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


def cached_scenes(split: str = "train", size: int = 2000, seed: int = 0) -> Path:
    """Folder of drawn scenes in the Keras home, written at the first call and then reused.

    It is under `$KERAS_HOME` (`~/.keras` by default) and may be deleted at any time. If two
    processes draw the same scenes at once, both use the folder of the first to finish.

    Raises:
        ValueError: As for `draw_scenes`, or the folder holds other files.
        OSError: The Keras home cannot be written.

    >>> cached_scenes("dev", size=2, seed=7).name
    'v2-dev-2-7'
    """
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").resolve()
    name = f"v{DRAWING_VERSION}-{split}-{size}-{seed}"
    folder = home / "datasets" / "mmret_scenes" / name
    try:
        write_scenes(folder, split, size, seed)
    except ValueError:  # the scenes exist already, unless the arguments are wrong
        if not (folder / "captions.jsonl").is_file():
            raise
    return folder


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = "holds files already" if folder.is_dir() else "is a file"
        raise ValueError(f"folder must be new or empty; {folder} {problem}, choose another")
