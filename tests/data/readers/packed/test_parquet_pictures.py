"""Pictures in Parquet files: each is right in any order and thread, and few are held."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mmret_tf.data import cleaning, load
from mmret_tf.data.decoders.pictures import encode_png
from mmret_tf.data.readers.packed import parquet_pictures as module
from mmret_tf.data.readers.packed.parquet_pictures import ParquetSource, parquet_source
from mmret_tf.data.sources import FileSource, identities

# Two row groups of 50 rows, and one of 20: pictures of 1,000 bytes.
ROWS, GROUP, SIZE = 120, 50, 1000


def content(row):
    return row.to_bytes(2, "big") * (SIZE // 2)


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of the row groups in the order in which they are decoded from the front."""
    found, batches_of = [], module._batches_of
    monkeypatch.setattr(module, "_decoded", module._DecodedPictures())
    monkeypatch.setattr(
        module, "_batches_of", lambda source: found.append(source.group) or batches_of(source)
    )
    return found


@pytest.fixture
def sources(tmp_path, decoded):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"image": [content(row) for row in range(ROWS)]})
    pyarrow.parquet.write_table(table, file, row_group_size=GROUP)
    return [ParquetSource(file, "image", *divmod(row, GROUP)) for row in range(ROWS)]


def test_in_order_each_row_group_is_decoded_once(sources, decoded):
    assert [source.read() for source in sources] == [content(row) for row in range(ROWS)]
    assert decoded == [0, 1, 2]
    assert len(set(identities(sources))) == ROWS and decoded == [0, 1, 2]  # all are kept


def test_few_pictures_are_held(sources, decoded, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 20 * SIZE)  # a batch of 16, or two of the rests
    for source in sources:
        source.read()
        held = module._decoded._batches
        assert module._decoded._bytes == sum(batch.nbytes for batch in held.values())
        assert len(held) <= 2 and module._decoded._bytes <= 20 * SIZE
    assert decoded == [0, 1, 2]
    assert sources[0].read() == content(0) and decoded == [0, 1, 2, 0]
    assert sources[40].read() == content(40) and decoded == [0, 1, 2, 0]  # goes on
    assert sources[3].read() == content(3) and decoded == [0, 1, 2, 0, 0]  # and begins again


@pytest.mark.parametrize("kept", [1, 20 * SIZE, 2**26])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_in_several_threads_each_picture_is_right(is_shuffled, kept, sources, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    monkeypatch.setattr(module, "OPEN_GROUPS", 2)
    rows = list(range(ROWS)) * 2
    if is_shuffled:
        random.Random(0).shuffle(rows)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda row: sources[row].read(), rows)
    assert list(found) == [content(row) for row in rows]


def test_a_file_that_changes_is_decoded_again(sources):
    assert sources[0].read() == content(0)
    table = pyarrow.table({"image": [b"another"]})
    pyarrow.parquet.write_table(table, sources[0].path)
    assert sources[0].read() == b"another"


def test_a_path_in_the_file_opens_the_picture(sources):
    source = sources[GROUP + 7]
    assert source.record == f"{source.path}/image/1/7" and source.name == source.record
    assert parquet_source(source.path, "image/1/7") == source
    assert FileSource(Path(source.record)).read() == content(GROUP + 7)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("image/0", "has no 'image/0': a picture is named by column/row group/row"),
        ("image/9/0", "image/9/0: there is no such column or row group"),
        ("photo/0/0", "photo/0/0: there is no such column or row group"),
        ("image/2/99", "image/2/99: there is no such row"),
        ("image/2/20", "image/2/20: the row has no picture"),
    ],
)
def test_what_is_not_in_the_file_is_a_value_error(member, message, sources):
    with pytest.raises(ValueError, match=message):
        FileSource(sources[0].path / member).read()


def test_a_file_that_is_gone_is_a_value_error(sources):
    sources[0].path.unlink()
    with pytest.raises(ValueError, match=r"image/0/0: No such file or directory"):
        sources[0].read()


def test_loading_decodes_each_row_group_once(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 2000)
    monkeypatch.setattr(cleaning, "cores", lambda: 1)  # threads may overtake each other
    image = [encode_png([[row]]) for row in range(90)]
    table = pyarrow.table({"image": image, "caption": ["x"] * 90})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    assert len(load(tmp_path)) == 90
    assert decoded == [0, 1, 2]
