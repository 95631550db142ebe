"""Sources: their content, identity, record and name, and what cannot be read."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from mmret_tf.data import Collection
from mmret_tf.data.sources import (
    FileSource,
    InlineSource,
    Source,
    file_or_bytes,
    identities,
    path_source,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256, from NIST


class Counted(Source):
    """A source of another kind, which counts how often it is read."""

    record = "shard 3, key 7"

    def __init__(self, content):
        self.content = content
        self.reads = 0

    def read(self):
        self.reads += 1
        return self.content


def test_identity_is_that_of_the_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"abc")
    sources = [FileSource(tmp_path / "a"), FileSource(tmp_path / "b"), InlineSource(b"abc")]
    assert [source.identity for source in sources] == [ABC] * 3
    assert InlineSource(b"abd").identity != ABC


def test_a_source_is_read_once_for_its_identity():
    source = Counted(b"abc")
    assert source.identity == source.identity == ABC and source.reads == 1


def test_identities_keep_the_order():
    contents = [str(number).encode() for number in range(50)]
    expected = [hashlib.sha256(each).hexdigest() for each in contents]
    assert identities(map(InlineSource, contents)) == expected
    assert identities([]) == []


def test_a_file_is_recorded_with_its_whole_path_and_named_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"abc")
    source = FileSource(Path("a.png"))
    assert source.record == os.path.join(os.getcwd(), "a.png")
    assert source.name == "a.png" and source.read() == b"abc"
    assert source == FileSource(Path("a.png")) and len({source, FileSource(Path("a.png"))}) == 1


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: No such file or directory$"):
        FileSource(tmp_path / "gone.png").read()
    with pytest.raises(ValueError, match=r"gone\.png: No such file or directory$"):
        identities([InlineSource(b"x"), FileSource(tmp_path / "gone.png")])
    with pytest.raises(ValueError, match="Is a directory$"):
        FileSource(tmp_path).read()
    with pytest.raises(ValueError, match="nul.*: embedded null"):
        FileSource(Path("nul\0.png")).read()


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / ".hidden").write_bytes(b"x")
    with pytest.raises(ValueError, match=f"^{tmp_path}: the folder holds no files$"):
        path_source(tmp_path).read()


def test_a_folder_reads_as_its_files_by_name(tmp_path):
    for name, content in [("b.png", b"second"), ("a.png", b"first"), (".hidden", b"")]:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    source = path_source(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(source.read())) as archive:
        assert [archive.extractfile(each).read() for each in archive] == [b"first", b"second"]
    assert source.size() == len(b"firstsecond") and source.identity_stamp is None
    # The same content has the same identity, and another content another.
    other = tmp_path / "folder"
    for name, content in [("x.png", b"first"), ("y.png", b"second")]:
        (other / name).write_bytes(content)
    assert path_source(other).identity == source.identity
    (other / "y.png").write_bytes(b"third")
    assert path_source(other).identity != source.identity


def test_inline_sources():
    source = InlineSource("红".encode(), "the text '红'")
    assert source.record == "红" and source.name == "the text '红'"
    assert InlineSource(b"x").name == "the source"


def test_paths_and_bytes():
    assert file_or_bytes("a.png") == file_or_bytes(Path("a.png")) == FileSource(Path("a.png"))
    assert file_or_bytes(b"abc") == InlineSource(b"abc")
    for wrong, name in ((3, "int"), (None, "NoneType"), (["a"], "list")):
        with pytest.raises(ValueError, match=f"a path or encoded bytes; got a {name}"):
            file_or_bytes(wrong)


def test_any_kind_of_source_can_be_in_a_collection():
    source = Counted(b"abc")
    collection = Collection(["a"], {"image": [[source]]})
    assert collection.sources["image"] == [[source]] and source.reads == 0
    assert collection.records()[0]["sources"] == {"image": ["shard 3, key 7"]}
    assert source.name == source.record


def test_a_path_below_what_is_no_folder_is_a_value_error():
    with pytest.raises(ValueError, match="none of its folders is a folder or a packed file"):
        FileSource(Path("/dev/null/a.png")).read()
