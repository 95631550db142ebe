"""Files and folders that are written whole or not at all, and checked on opening.

A folder has a manifest with the size and SHA-256 of each file. The embedding store, the index and
the compressed tower are such folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A manifest lists a dozen files; a larger one is not ours, and is not read into memory.
MANIFEST_BYTES = 2**20

CHUNK_NAME = re.compile(r"[0-9a-f]{64}\.npy(\.partial)?")


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to; the file there takes the place of `path` when the block ends.

    After an exception `path` is as it was. The suffix is kept, because Keras and Pillow choose a
    format by it.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a readable JSON file, whole or not at all."""
    with replaced_file(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def open_array(path: Path, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Memory-map an array of a known shape and type; ValueError for any other file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no NumPy array: {error}") from None
    if array.dtype != dtype or array.shape != tuple(shape) or array.ndim != 2:
        raise ValueError(
            f"{path} must hold {dtype} {list(shape)}; got {array.dtype} {list(array.shape)}"
        )
    return array


def partial_folder(folder: Path) -> Path:
    """Where the unfinished content of a folder stands, beside it."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}.partial")


def claim_folder(folder: Path, kind: str) -> None:
    """Refuse to write where others' files would be lost; put back what a kill left moved away.

    Args:
        folder: may be missing, empty, or hold what a manifest of this format lists and no more.
        kind: the format that the manifest must name; its version and hashes do not matter.

    Raises:
        ValueError: the folder, or the one of its unfinished content, holds anything else.
    """
    partial = partial_folder(folder)
    if partial.exists():
        foreign = [
            path.name
            for path in (partial.iterdir() if partial.is_dir() else [partial])
            if path.name not in ("new", "old") and not CHUNK_NAME.fullmatch(path.name)
        ]
        if foreign:
            raise ValueError(f"{partial} is needed, but holds {foreign[0]!r}: move it away")
    old = partial / "old"
    if not folder.exists() and old.exists():  # killed between the two moves of replace_folder
        old.rename(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder to write")
    names = {path.name for path in folder.iterdir()}
    if names:
        files = _parse_manifest(folder, kind)["files"]
        foreign = sorted(names - set(files) - {"manifest.json"})
        if foreign:
            raise ValueError(f"{folder} would be replaced, but holds {foreign[0]!r}: move it away")


@contextlib.contextmanager
def replace_folder(folder: Path, manifest: dict) -> Iterator[Path]:
    """Write a folder so that a kill leaves the old content or the new, never a half.

    Yields an empty folder to fill. On leaving, its files are listed in its `manifest.json`, with
    sizes and SHA-256, and it takes the place of `folder` (see `EmbeddingStore.export` for the
    order). After an exception `folder` is as it was.

    Args:
        folder: what `claim_folder` allows.
        manifest: "format", "version" and whatever else is to be read back by `read_manifest`.
    """
    claim_folder(folder, manifest["format"])
    partial = partial_folder(folder)
    new, old = partial / "new", partial / "old"
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir(parents=True)
    try:
        yield new
        files = {
            path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(new.iterdir())
        }
        manifest = {**manifest, "files": files}
        manifest["sha256"] = _manifest_sha256(manifest)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (new / "manifest.json").write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):  # chunks of an export stay
            partial.rmdir()
        raise
    shutil.rmtree(partial)


def read_manifest(folder: Path, kind: str, version: int) -> tuple[Path, dict]:
    """Check a folder against its `manifest.json`; return where its files stand, and that.

    They stand in the folder, or beside it where a kill came between the moves of `replace_folder`.

    The folder must hold exactly the files that are listed, with the listed sizes and SHA-256. That
    finds damage, and files that slipped in; it is no signature: whoever can write the folder can
    write a manifest that fits.

    Args:
        folder: what `replace_folder` wrote.
        kind: the format that the manifest must name.
        version: the newest version of that format that can be read.

    Raises:
        ValueError: missing, of another format, newer, or damaged.
    """
    old = partial_folder(folder) / "old"
    if not folder.exists() and old.exists():
        folder = old
    manifest = _parse_manifest(folder, kind)
    if manifest.get("version") != version:
        raise ValueError(
            f"{folder} has version {manifest.get('version')!r} of {kind!r}, and this mmret_tf "
            f"reads version {version}: update mmret_tf, or make it again"
        )
    if manifest.get("sha256") != _manifest_sha256(manifest):
        raise ValueError(f"{folder} is damaged: manifest.json was changed")
    files = manifest["files"]
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    if missing := sorted(set(files) - names):
        raise ValueError(f"{folder} is damaged: {missing[0]!r} is missing")
    if unknown := sorted(names - set(files)):
        raise ValueError(f"{folder} holds an unknown file, {unknown[0]!r}: move it away")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["size"]:
            raise ValueError(f"{folder} is damaged: {name!r} must have {expected['size']} bytes")
        if file_sha256(path) != expected["sha256"]:
            raise ValueError(f"{folder} is damaged: {name!r} has another SHA-256 than it had")
    return folder, manifest


def _parse_manifest(folder: Path, kind: str) -> dict:
    """The manifest of a folder; ValueError unless it names this format and lists files."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no folder of {kind!r}: it has no manifest.json")
    try:
        with open(path, "rb") as file:
            manifest = json.loads(file.read(MANIFEST_BYTES))
        if manifest["format"] != kind:
            raise ValueError(f"it is of format {manifest['format']!r}")
        for name, expected in manifest["files"].items():
            expected["size"], expected["sha256"]
            if name in ("", "..") or Path(name).name != name:
                raise ValueError(f"it lists {name!r}, which is no name of a file in the folder")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no manifest of {kind!r}: {error}") from None
    return manifest


def _manifest_sha256(manifest: dict) -> str:
    """SHA-256 of all of a manifest but this number itself."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
