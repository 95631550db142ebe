"""Files and folders that are written whole or not at all, and checked on opening.

A folder has a manifest with the size and SHA-256 of each file. The embedding store, the index and
the compressed tower are such folders.
"""

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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# A manifest lists a dozen files; a larger one is not ours, and is not read into memory.
MANIFEST_BYTES = 2**20

# What a folder of unfinished content may hold: the chunks of an export, and the two below.
PARTIAL_NAME = re.compile(r"[0-9a-f]{64}\.npy(\.partial)?|new|old")


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


def keras_home() -> Path:
    """Keras' folder for what can be made again: `$KERAS_HOME`, or `~/.keras`."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").resolve()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a readable JSON file, whole or not at all."""
    with replaced_file(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_array(path: Path, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Memory-map an array of a known shape and type; ValueError for any other file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever a damaged header does to NumPy's parser
        raise ValueError(f"{path} is not a NumPy array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is not a NumPy array: it is an archive of several")
    if array.dtype != dtype or array.shape != tuple(shape):
        raise ValueError(
            f"{path} must hold {dtype} {list(shape)}; got {array.dtype} {list(array.shape)}"
        )
    return array


def partial_folder(folder: Path) -> Path:
    """Where the unfinished content of a folder stands, beside it."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}.partial")


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder for unfinished content, and keep other processes out of it; remove it at the
    end if it is empty.

    The lock is released when the process ends, even if it is killed. Systems without `fcntl` have
    no lock.

    Args:
        folder: Is made if it is missing.

    Raises:
        ValueError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _descriptor(folder) as descriptor:
        if descriptor is not None:
            _lock(descriptor, folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is not empty, or was moved
                folder.rmdir()


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int | None]:
    """A folder that is open, to be locked; `None` where the system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Lock an open folder; ValueError if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other process may have removed this folder before the lock was ours.
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            return
    except (BlockingIOError, FileNotFoundError):
        pass
    raise ValueError(f"another process is writing {folder}: try again later")


@contextlib.contextmanager
def awaited_folder(folder: Path, exclusive: bool) -> Iterator[None]:
    """Wait until no other process has this folder for itself, and keep it meanwhile.

    Nothing is kept where the system has no such locks.

    Args:
        folder: Exists.
        exclusive: Whether other processes wait; otherwise only those that want it for themselves.
    """
    with _descriptor(folder) as descriptor:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def claimed_folder(folder: Path, kind: str) -> Iterator[Path]:
    """Refuse to write where others' files would be lost; put back what a kill left moved away.

    Yields the folder of unfinished content, beside `folder`; no other process has it.

    Args:
        folder: may be missing, empty, or hold what a manifest of this format lists and no more.
        kind: the format that the manifest must name; its version and hashes do not matter.

    Raises:
        ValueError: The folder, or the one of its unfinished content, holds anything else, or
            another process is writing there.
    """
    partial = partial_folder(folder)
    if partial.exists():
        paths = partial.iterdir() if partial.is_dir() else [partial]
        if foreign := [path.name for path in paths if not PARTIAL_NAME.fullmatch(path.name)]:
            raise ValueError(f"{partial} is needed, but holds {foreign[0]!r}: move it away")
    with locked_folder(partial):
        _check_replaceable(folder, partial / "old", kind)
        yield partial  # it stays with the chunks of an unfinished export


def _check_replaceable(folder: Path, old: Path, kind: str) -> None:
    """Put back what a kill left moved away; ValueError if the folder holds files of others."""
    if not folder.exists() and old.exists():  # killed between the two moves of `replaced_content`
        old.rename(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; expected a folder to write")
    if names := set(os.listdir(folder) if folder.exists() else ()):
        files = _parse_manifest(folder, kind)["files"]
        if foreign := sorted(names - set(files) - {"manifest.json"}):
            raise ValueError(f"{folder} would be replaced, but holds {foreign[0]!r}: move it away")


@contextlib.contextmanager
def replace_folder(folder: Path, manifest: dict) -> Iterator[Path]:
    """Claim a folder and replace its content, see `claimed_folder` and `replaced_content`."""
    with (
        claimed_folder(folder, manifest["format"]) as partial,
        replaced_content(folder, partial, manifest) as new,
    ):
        yield new


@contextlib.contextmanager
def replaced_content(folder: Path, partial: Path, manifest: dict) -> Iterator[Path]:
    """Write a folder so that a kill leaves the old content or the new, never a half.

    Yields an empty folder to fill. On leaving, its files are listed in its `manifest.json`, with
    sizes and SHA-256, and it takes the place of `folder` (see `EmbeddingStore.export` for the
    order). After an exception `folder` is as it was.

    Args:
        folder: The folder.
        partial: As `claimed_folder` yields it.
        manifest: "format", "version" and whatever else is to be read back by `read_manifest`.
    """
    new, old = partial / "new", partial / "old"
    for leftover in filter(Path.exists, (new, old)):
        shutil.rmtree(leftover)
    new.mkdir()
    try:
        yield new
        manifest = {
            **manifest,
            "files": {path.name: _stamp(path) for path in sorted(new.iterdir())},
        }
        write_json(new / "manifest.json", manifest | {"sha256": _manifest_sha256(manifest)})
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        raise
    for leftover in partial.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def read_manifest(folder: Path, kind: str, version: int) -> tuple[Path, dict]:
    """Check a folder against its `manifest.json`; return where its files stand, and that.

    They stand in the folder; where a kill came between the moves of `replaced_content`, beside it.

    The folder must hold exactly the files that are listed, with the listed sizes and SHA-256. That
    finds damage, and files that slipped in; it is not a signature: whoever can write the folder can
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
        found = f"{folder} has version {manifest.get('version')!r} of {kind!r}"
        raise ValueError(
            f"{found}; this reads version {version}: update mmret_tf, or make it again"
        )
    if manifest.get("sha256") != _manifest_sha256(manifest):
        raise ValueError(f"{folder} is damaged: manifest.json was changed")
    files = manifest["files"]
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    if different := sorted(names ^ set(files)):
        raise ValueError(f"{folder} is damaged: {different[0]!r} is missing or unknown")
    for name, stamp in files.items():
        if _is_other(folder / name, stamp):
            raise ValueError(f"{folder} is damaged: {name!r} has another SHA-256 than it had")
    return folder, manifest


def _is_other(path: Path, stamp: dict) -> bool:
    """Whether a path is not what a manifest lists."""
    try:
        return _stamp(path) != stamp
    except OSError:  # not a file, or a folder without a manifest
        return True


def _parse_manifest(folder: Path, kind: str) -> dict:
    """The manifest of a folder; ValueError unless it names this format and lists files."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a folder of {kind!r}: it has no manifest.json")
    try:
        with open(path, "rb") as file:
            manifest = json.loads(file.read(MANIFEST_BYTES))
        if manifest["format"] != kind:
            raise ValueError(f"it is of format {manifest['format']!r}")
        for name, _ in manifest["files"].items():
            if name in ("", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is not the name of a file in the folder")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest of {kind!r}: {error}") from None
    return manifest


def _stamp(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file; of a folder those of its manifest, which vouches for the rest."""
    path = path / "manifest.json" if path.is_dir() else path
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def _manifest_sha256(manifest: dict) -> str:
    """SHA-256 of all of a manifest but this number itself."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
