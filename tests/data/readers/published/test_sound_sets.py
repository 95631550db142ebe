"""ESC-50, AudioCaps and Clotho as they are distributed, and the rows that are set aside."""

import pytest
from conftest import draw, load_quietly, write

from mmret_tf.data import load
from mmret_tf.data.readers.reader import read_layout

ESC50 = "filename,fold,target,category,esc10,src_file,take"
AUDIOCAPS = "audiocap_id,youtube_id,start_time,caption"
CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"


def paths(items):
    """The paths of each item's sounds."""
    return [[source.path for source in each] for each in items.sources["audio"]]


def test_esc50(beep, tmp_path):
    rows = [f"{fold}-100-A-{fold}.wav,{fold},36,vacuum_cleaner,False,100,A" for fold in range(1, 6)]
    write(tmp_path / "meta" / "esc50.csv", ESC50, *rows, newline="\r\n")
    files = [beep(tmp_path / "audio" / row.split(",")[0], 400 + len(row)) for row in rows]
    draw(tmp_path / "esc50.gif")  # of its page
    items = load(tmp_path)
    assert items.ids == [file.name for file in files] and paths(items) == [[each] for each in files]
    assert items.captions == [["vacuum cleaner"]] * 5 and items.quarantined == []
    assert items.splits == ["train", "train", "train", "dev", "test"]
    assert items.attributes[3] == {"fold": 4, "category": "vacuum_cleaner"}
    assert load(tmp_path / "meta" / "esc50.csv", split="dev").ids == ["4-100-A-4.wav"]


def test_bad_rows_of_esc50_are_set_aside(beep, tmp_path):
    rows = ["a.wav,1,0,dog,,,", "b.wav,first,0,dog,,,", "c.wav,2,0,dog,,,", "d.wav,2"]
    rows += ["e.wav,2,0, ,,,", "f.wav,3,0,dog,,,"]
    write(tmp_path / "meta" / "esc50.csv", ESC50, *rows)
    beep(tmp_path / "audio" / "a.wav")
    beep(tmp_path / "audio" / "e.wav", 500)
    write(tmp_path / "audio" / "f.wav", "rubbish")
    items = load_quietly(tmp_path, loader=load)
    assert items.ids == ["a.wav", "e.wav"] and items.captions == [["dog"], []]
    aside = dict(items.quarantined)
    assert "not a WAV" in aside.pop("audio/f.wav")
    assert aside == {
        "meta/esc50.csv line 3": "the fold must be a number, got 'first'",
        "audio/c.wav": "the file does not exist (meta/esc50.csv line 4)",
        "meta/esc50.csv line 5": "expected 7 fields (filename,fold,target,category,esc10,src_file,"
        "take), got 2",
        "meta/esc50.csv line 6": "empty caption",
    }


def test_a_table_of_esc50_without_its_columns_is_refused(tmp_path):
    write(tmp_path / "meta" / "esc50.csv", "filename,target", "a.wav,1")
    with pytest.raises(ValueError, match=r"esc50.csv has no column fold nor category$"):
        load(tmp_path)


@pytest.mark.parametrize("folder", ["", "dataset"])
def test_audiocaps(folder, beep, tmp_path):
    tables = tmp_path / folder
    write(
        tables / "train.csv",
        AUDIOCAPS,
        '1,-a_1,30,"A dog barks, then ""howls"""',
        "2,bbb,0,Rain falls",
        "3,ccc,10,A bell rings",
        newline="\r\n",
    )
    write(tables / "val.csv", AUDIOCAPS, *(f"{n},ddd,7,Caption {n}" for n in range(4, 9)))
    write(tables / "test.csv", AUDIOCAPS, "9,eee,0,A horn", "10,fff,0,Gone", "11,eee,0,A car horn")
    files = [
        beep(tmp_path / "train" / "-a_1.wav", 300),
        beep(tmp_path / "audio" / "train" / "Ybbb.wav", 400),
        beep(tmp_path / "audio" / "3.wav", 500),
        beep(tmp_path / "val" / "ddd_7.wav", 600),
        beep(tmp_path / "11.wav", 700),
    ]
    items = load_quietly(tmp_path, loader=load)
    columns = zip(paths(items), items.captions, items.splits, strict=True)
    found = dict(zip(items.ids, columns, strict=True))
    assert found == {
        "-a_1_30": ([files[0]], ['A dog barks, then "howls"'], "train"),
        "bbb_0": ([files[1]], ["Rain falls"], "train"),
        "ccc_10": ([files[2]], ["A bell rings"], "train"),
        "ddd_7": ([files[3]], [f"Caption {n}" for n in range(4, 9)], "dev"),
        "eee_0": ([files[4]], ["A horn", "A car horn"], "test"),
    }
    place = "dataset/test.csv" if folder else "test.csv"
    reason = f"the file does not exist ({place} line 3)"
    assert items.quarantined == [("test/fff.wav", reason)]
    assert load(tables / "val.csv").ids == ["ddd_7"]


def test_audiocaps_in_flac(beep, tmp_path):
    write(tmp_path / "test.csv", AUDIOCAPS, "1,a,0,A dog", "2, ,0,No name")
    file = beep(tmp_path / "audio" / "a.flac")
    items = load_quietly(tmp_path, loader=load)
    assert paths(items) == [[file]] and items.splits == ["test"]
    assert items.quarantined == [("test.csv line 3", "empty youtube_id")]


def test_other_tables_of_these_names_are_not_audiocaps(tmp_path):
    draw(tmp_path / "a.png")
    file = write(tmp_path / "train.csv", "image,caption", "a.png,x")
    for source in (tmp_path, file):
        assert read_layout(source).layout == "AnyTable: train.csv"


def test_clotho(beep, tmp_path):
    parts = {"development": "train", "validation": "dev", "evaluation": "test"}
    for number, part in enumerate(parts):
        row = f'{part} (1).wav,"Rain, then wind",Caption 2,Caption 3,雨声,Caption 5'
        write(tmp_path / f"clotho_captions_{part}.csv", CLOTHO, row)
        folder = part if number else f"clotho_audio_{part}"
        beep(tmp_path / folder / f"{part} (1).wav", 300 + 100 * number)
    items = load(tmp_path)
    assert dict(zip(items.ids, items.splits, strict=True)) == {
        f"{part} (1).wav": split for part, split in parts.items()
    }
    captions = ["Rain, then wind", "Caption 2", "Caption 3", "雨声", "Caption 5"]
    assert items.captions == [captions] * 3 and items.quarantined == []
    assert load(tmp_path, split="val").ids == ["validation (1).wav"]


def test_bad_rows_of_clotho_are_set_aside(beep, tmp_path):
    rows = ["a.wav,one,,three,four,five", "gone.wav,1,2,3,4,5", "../b.wav,1,2,3,4,5"]
    file = write(tmp_path / "set" / "clotho_captions_evaluation.csv", CLOTHO, *rows)
    beep(tmp_path / "set" / "evaluation" / "a.wav")
    beep(tmp_path / "b.wav")
    items = load_quietly(tmp_path / "set", loader=load)
    assert items.captions == [["one", "three", "four", "five"]]
    assert dict(items.quarantined) == {
        f"{file.name} line 2": "empty caption",
        "evaluation/gone.wav": f"the file does not exist ({file.name} line 3)",
        "../b.wav": f"leads outside the collection ({file.name} line 4)",
    }
