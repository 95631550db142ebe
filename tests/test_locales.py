"""The whole loop with Chinese captions, in processes whose encoding is not UTF-8."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from conftest import write_config, write_jsonl
from PIL import Image

import mmret_tf as mm

# Text that is read or written without an encoding is an error, also where the locale can hold it.
LOOP = """import json, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="mmret_tf")
from mmret_tf import cli
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""
COLOURS = {"red": "红色的圆", "blue": "蓝色的方块", "green": "绿色的星", "white": "白色的三角"}
CHARMAPS = Path("/usr/share/i18n/charmaps")


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """A folder of locales, as the C library reads them."""
    folder = tmp_path_factory.mktemp("locales")
    for name, language, charmap in (
        ("en_US.ISO-8859-1", "en_US", "ISO-8859-1"),
        ("zh_CN.GBK", "zh_CN", "GBK"),
    ):
        if shutil.which("localedef") and (CHARMAPS / f"{charmap}.gz").exists():
            subprocess.run(["localedef", "-i", language, "-f", charmap, folder / name], check=True)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures of each colour; the name of one more is Chinese. No two are equal: which of
    them comes first would be left to rounding."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for split in ("train", "dev"):
        for colour, caption in COLOURS.items():
            picture = Image.new("RGB", (20, 20), colour)
            if split == "dev":
                picture.paste("black", (0, 0, 10, 20))
            picture.save(folder / f"{split}-{colour}.png")
            rows.append({"image": f"{split}-{colour}.png", "caption": caption, "split": split})
    chinese = Image.new("RGB", (20, 20), "red")
    chinese.paste("black", (0, 0, 20, 10))
    chinese.save(os.fsencode(folder) + "/红.png".encode())
    write_jsonl(folder, *rows, {"image": "红.png", "caption": "红", "split": "train"})
    write_config(folder, folder, epochs=2, batch_size=4)
    return folder


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1", "zh_CN.GBK"])
def test_it_trains_searches_and_exports(locale, locales, pictures, tmp_path):
    if locale != "C" and not (locales / locale).exists():
        pytest.skip(f"no {locale}: localedef or its charmap is not installed")
    run, export = str(tmp_path / "run"), str(tmp_path / "export" / "m")
    loop = [
        ["train", "--config", str(pictures / "config.json"), "--run", run],
        ["search", "--run", run, "--top", "3", "红色的圆"],
        ["export", "--run", run, "--directory", export],
    ]
    environment = {"LC_ALL": locale, "LOCPATH": str(locales)}
    environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONWARNDEFAULTENCODING": "1"}
    command = [sys.executable, "-c", LOOP, json.dumps(loop)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True)
    assert done.returncode == 0, done.stderr

    searcher = mm.Searcher.open(run)
    found = [result.id for result in searcher.search(text="红色的圆", k=3)]
    assert all(id.encode() in done.stdout for id in found)
    assert "圆" in searcher.encoder.text_preprocessor.get_vocabulary()
    captions = [result.item["captions"] for result in searcher.search(text="红色的圆", k=8)]
    assert sorted(text for (text,) in captions) == sorted([*COLOURS.values()] * 2)
    served = tf.saved_model.load(f"{export}/1")
    answer = served.signatures["search_by_text"](text=tf.constant(["红色的圆"]))
    assert [id.decode() for id in answer["ids"].numpy()[0, :3]] == found
