"""Files of a collection: where the file is that a row names, and which files are below a folder."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from posixpath import join, normpath
from unicodedata import normalize

# Folders of images beside captions files, as collections are distributed.
IMAGE_FOLDERS = (
    *("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset"),
    *("flickr30k-images", "flickr30k_images"),
)


def is_inside(folder: Path, path: str) -> bool:
    """Whether a path relative to `folder` stays in it, links followed."""
    root = os.path.realpath(folder)
    try:
        real = os.path.realpath(os.path.join(root, path))
    except ValueError:  # a zero byte in the name
        return False
    return not os.path.isabs(path) and os.path.commonpath([root, real]) == root


def relative_name(folder: Path, name: str) -> str:
    """The name of a file as a row has it; an absolute one in the folder, relative to the folder."""
    name = name.strip()
    if os.path.isabs(name) and is_inside(folder, relative := os.path.relpath(name, folder)):
        return Path(relative).as_posix()
    return normpath(name)


def is_content(path: str) -> bool:
    """Whether a path is that of a file, or of a folder such as one of frames; not of a pipe."""
    return os.path.isfile(path) or os.path.isdir(path)


def find_file(folder: Path, name: str, places: tuple[str, ...] = (".",)) -> str:
    """The path of the file that a row names; in the first of the places, if it is in none.

    Other spellings are tried as well: with `\\` for "/", as Windows has it, and with accents apart
    (NFD) or composed (NFC), as macOS and captions files differ.

    Args:
        folder: The collection.
        name: Name of the file.
        places: Folders in which it may be.
    """
    name = relative_name(folder, name)
    spellings = [name, name.replace("\\", "/")]
    spellings += [normalize(form, each) for form in ("NFC", "NFD") for each in spellings]
    paths = [normpath(join(place, each)) for place in places for each in dict.fromkeys(spellings)]
    return next((path for path in paths if is_content(join(folder, path))), paths[0])


def find_named(
    folder: Path, names: Iterable[str], suffixes: tuple[str, ...], places: tuple[str, ...]
) -> str:
    """The path of the first file that exists with one of some names, suffixes and places; if there
    is none, the path with the first of each.

    Args:
        folder: The collection.
        names: Names without a suffix, in the order of preference; at least one.
        suffixes: Suffixes that the file may have.
        places: Folders in which it may be.

    >>> find_named(Path("nowhere"), ["a", "b"], (".mp4", ".avi"), ("videos", "."))
    'videos/a.mp4'
    """
    first = None
    for name in names:
        for suffix in suffixes:
            path = find_file(folder, name + suffix, places)
            if is_content(join(folder, path)):
                return path
            first = first or path
    return first


def first_bytes(file: Path, size: int) -> bytes:
    """The first bytes of a file, by which a layout is recognised; none if it cannot be read.

    Args:
        file: The file.
        size: Number of bytes.
    """
    if not file.is_file():  # a pipe, say, would wait for a writer
        return b""
    try:
        with open(file, "rb") as opened:
            return opened.read(size)
    except OSError:
        return b""


def files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Names of the files with such a suffix below a folder, sorted; hidden ones are skipped."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        place = Path(parent).relative_to(folder).as_posix()
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield normpath(join(place, name))
