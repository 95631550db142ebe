"""The command line: each command in turn on one small run, and mistakes told in one line."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from typing import get_args, get_type_hints

import forge_runs
import full_disk
import keras
import numpy as np
import pytest
import typer
from conftest import make_backbone, make_text, write_config, write_jsonl
from forging import outcome_of
from PIL import Image

import mmret_tf as mm
from mmret_tf import cli
from mmret_tf.cli import common, galleries, models, serving
from mmret_tf.data.decoders.sounds import encode_wav
from mmret_tf.ranking import EmbeddingStore, Run
from mmret_tf.ranking.storage.embedding_store import DTYPES
from mmret_tf.training import trainer
from mmret_tf.training.config import TrainConfig, setting_help

COLOURS = ("red", "blue", "green", "black", "white")
COMMANDS = typer.main.get_command(cli.app).commands

# What overwrites lines or moves the cursor.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x9b]")


def mmret(capsys, *arguments):
    """Run the command in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err


def python(*arguments):
    """Run Python in a process of its own."""
    arguments = [sys.executable, *map(str, arguments)]
    return subprocess.run(arguments, capture_output=True, text=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Ten pictures, a text alone, an item of two pictures, and two rows that are set aside."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for number in range(10):
        Image.new("RGB", (20, 20), COLOURS[number % 5]).save(folder / f"{number}.png")
        split = "train" if number < 6 else "dev"
        caption = f"a picture of {COLOURS[number % 5]}"
        rows.append({"image": f"{number}.png", "caption": caption, "split": split})
    rows[9]["caption"] += " \x1b[2J"  # would clear a terminal
    rows += [
        {"id": "note", "caption": "a note", "attributes": {"kind": "note"}, "split": "train"},
        {"id": "two", "images": ["a.png", "b.png"], "caption": "two pictures", "split": "train"},
        {"image": "gone\x1b[2J.png", "caption": "gone", "split": "train"},
        {"image": "empty.png", "caption": "empty", "split": "train"},
    ]
    for name in ("a", "b"):
        Image.new("RGB", (20, 20), "red").save(folder / f"{name}.png")
    (folder / "empty.png").write_bytes(b"")
    write_jsonl(folder, *rows)
    return folder


@pytest.fixture(scope="session")
def trained(photos, tmp_path_factory):
    """A run that `python -m mmret_tf train` made in a process of its own, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, photos, epochs=1, reranker_epochs=1)
    options = ["--config", config, "--reranker", "--batch-size", 4, "--run", folder / "run"]
    return Run(folder / "run"), python("-m", "mmret_tf", "train", *options)


@pytest.fixture
def run(trained, monkeypatch):
    """The folder of the trained run; its model is loaded once for all tests."""
    monkeypatch.setattr(Run, "load_model", lambda self: load_once(self.model))
    return trained[0].folder


@functools.cache
def load_once(path):
    from mmret_tf.models.dual_encoder import load_model

    return load_model(path)


def test_training_leaves_a_run_and_plain_lines(trained):
    run, done = trained
    assert done.returncode == 0, done.stderr
    report = run.read_report()
    assert (report["config"]["batch_size"], report["config"]["units"]) == (4, 8)
    assert report["epochs_completed"] == 1 and report["train_images"] == 8
    reasons = dict(report["quarantined"])
    assert reasons["empty.png"] == "empty file" and "note" not in reasons and len(reasons) == 2
    assert len(EmbeddingStore.open(run.embeddings)) == 12 and run.index.is_dir()

    words = " ".join(done.stdout.split())
    assert re.search(r"^4/4 - .* - loss: ", done.stdout, re.M)  # one line for the epoch
    assert "4 images, 4 captions" in words and "text to image" in words
    assert "of 12 embeddings" in words and "exact search, recall 1.000" in words
    assert "With the second stage (--rerank):" in words
    assert words.count("set aside:") == 2 and "Try: mmret search --run" in words
    assert not CONTROL.search(done.stdout) and not CONTROL.search(done.stderr)
    # TensorFlow's C++ code logs nothing here.
    assert re.fullmatch(r"mmret: 2 of 14 entries were set aside .*\n", done.stderr), done.stderr


def test_evaluation_is_printed_and_saved(run, photos, capsys):
    options = ["evaluate", "--run", run, "--data", photos / "captions.jsonl"]
    code, out, err = mmret(capsys, *options, "--split", "dev")
    assert code == 0 and "4 images, 4 captions" in out and "100.0% ±0.0" in out, err
    assert json.loads((run / "evaluation.json").read_text())["t2i_R@10"] == 1
    code, out, err = mmret(capsys, *options, "--split", "dev", "--folds", 2, "--plots")
    assert code == 0 and "mean of 2 folds" in out, err
    pictures = sorted(path.name for path in (run / "plots").iterdir())
    names = ["best", "curves", "errors_confusions", "errors_hubs", "errors_recall", "recall"]
    assert pictures == [f"{name}.png" for name in [*names, "similarities", "worst"]]
    errors = json.loads((run / "evaluation.json").read_text())["errors"]
    ranks = errors["recall"]["all"]["text_to_image"]["vocabulary_rank"]
    assert sum(each["queries"] for each in ranks) == 4 and errors["hubs"]["first"]["mean"] == 1


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_a_collection_is_inspected_in_tables_and_lines(photos, tmp_path, capsys):
    picture = tmp_path / "samples.png"
    code, out, err = mmret(capsys, "inspect", photos, "--gallery", picture)
    words = re.sub(r"[\s│┃]+", " ", out)
    assert code == 0 and "layout JsonLines: captions.jsonl" in words, err
    assert "items 12 (train 8, dev 4)" in words and "image sources 12 of 11 items" in words
    assert "english 12" in words and "PNG 12" in words and "pictures of one colour 12" in words
    assert "the file does not exist 1 gone [2J.png" in words and "empty file 1 empty.png" in words
    # The colours of 6 to 9 are those of 1 to 4.
    assert "LEAK: 4 pictures of dev are also in train: 4 with the same content, 0 nearly" in words
    assert "\n  dev 6.png = train 1.png (same content)\n" in out
    assert "\n  9.png\n    a picture of white [2J\n" in out and not CONTROL.search(out)
    assert Image.open(picture).size == (6 * 172 + 12, 2 * 332 + 12)
    code, out, err = mmret(capsys, "inspect", photos, "--split", "dev")
    assert code == 0 and "there are no two splits to compare" in out, err


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_an_inspection_is_one_json_object(photos, capsys, monkeypatch):
    monkeypatch.setattr("mmret_tf.evaluation.inspection.PROGRESS_FROM", 1)
    code, out, err = mmret(capsys, "inspect", photos, "--json")
    report = json.loads(out)
    assert code == 0 and report["items"] == 12 and "12/12 pictures" in err, err
    assert report["leaks"] == [{"split": "dev", "other_split": "train", "pictures": 4, "exact": 4}]
    assert report["samples"][9]["captions"] == ["a picture of white \x1b[2J"]
    assert not CONTROL.search(out)


def test_search_prints_ranked_results_without_escape_sequences(run, photos, tmp_path, capsys):
    picture = tmp_path / "gallery.png"
    search = ["search", "--run", run]
    code, out, err = mmret(capsys, *search, "a picture of white", "--top", 12, "--gallery", picture)
    assert code == 0, err
    found = re.findall(r"^ +(\d+)  -?\d\.\d{3}  (.*)$", out, re.M)
    assert [int(rank) for rank, _ in found] == list(range(1, 13))
    files = [str(photos / f"{name}.png") for name in (*range(10), "a")]
    assert {place for _, place in found} == {*files, "note"}
    assert out.count("a picture of") == 10 and "[2J" in out and not CONTROL.search(out)
    assert Image.open(picture).size[0] > 12 * 160
    code, out, err = mmret(capsys, *search, "--image", photos / "7.png", "--top", 1)
    assert code == 0 and "1.000" in out, err
    code, out, err = mmret(capsys, *search, "a", "--where", '{"kind": "note"}')
    assert code == 0 and len(out.splitlines()) == 2 and out.splitlines()[1].strip() == "a note", err
    code, out, err = mmret(capsys, *search, "red", "--where", '{"prise": 5}')
    assert code == 2 and "no item has the attribute 'prise'" in err


@pytest.fixture(scope="session")
def playing(tmp_path_factory):
    """A run over two sounds and two clips, and their folder."""
    data, folder = tmp_path_factory.mktemp("sounds"), tmp_path_factory.mktemp("playing") / "run"
    rows = []
    for name, pitch in (("low", 300), ("high", 1200)):
        samples = 0.5 * np.sin(2 * np.pi * pitch * np.arange(4000) / 4000)
        (data / f"{name}.wav").write_bytes(encode_wav(samples, 4000))
        rows.append({"id": name, "audio": f"{name}.wav", "captions": [f"a {name} tone"]})
    for colour in COLOURS[:2]:
        frames = [Image.new("RGB", (32, 32), "white") for _ in range(4)]
        for number, frame in enumerate(frames):
            frame.paste(colour, (6 * number, 8, 6 * number + 12, 20))
        options = {"save_all": True, "append_images": frames[1:], "duration": 100}
        frames[0].save(data / f"{colour}.gif", **options)
        rows.append({"id": colour, "video": f"{colour}.gif", "captions": [f"{colour} moves"]})
    write_jsonl(data, *rows)
    keras.utils.set_random_seed(0)
    towers = [
        mm.audio_tower(rate=4000, seconds=1.0, embedding_dim=16),
        mm.video_tower(make_backbone(), frames=3, image_size=16, units=8, embedding_dim=16),
        mm.text_tower(make_text(), units=8, embedding_dim=16),
    ]
    folder.mkdir()
    run, model = Run(folder), mm.MultiEncoder(towers)
    model.save(run.model)
    EmbeddingStore.export(model, mm.load(data), run.embeddings)
    run.build_index()
    return folder, data


def test_sounds_and_clips_are_searched_by_files(playing, tmp_path, capsys, monkeypatch):
    run, data = playing
    monkeypatch.setattr(Run, "load_model", lambda self: load_once(self.model))
    search, drawn = ["search", "--run", run], tmp_path / "gallery.png"
    for option, name in (("--audio", "high.wav"), ("--video", "blue.gif")):
        code, out, err = mmret(capsys, *search, option, data / name, "--gallery", drawn)
        first, caption, *_ = out.splitlines()
        assert code == 0 and first == f"  1  1.000  {data / name}" and caption.split(), err
        assert len(re.findall(r"\.(wav|gif)$", out, re.M)) == 4 and not CONTROL.search(out)
        assert Image.open(drawn).size[0] > 4 * 160
    files = ["--audio", data / "high.wav", "--video", data / "blue.gif"]
    code, out, err = mmret(capsys, *search, *files, "--top", 2)
    assert code == 0 and len(out.splitlines()) == 4, err
    code, out, err = mmret(capsys, *search, "a low tone", "--audio", data / "high.wav")
    assert code == 0 and len(out.splitlines()) >= 8, err
    (tmp_path / "frames").mkdir()
    with Image.open(data / "red.gif") as clip:
        for number in range(clip.n_frames):
            clip.seek(number)
            clip.convert("RGB").save(tmp_path / "frames" / f"{number}.png")
    code, out, err = mmret(capsys, *search, "--video", tmp_path / "frames", "--top", 1)
    assert code == 0 and out.splitlines()[0] == f"  1  1.000  {data / 'red.gif'}", err


@pytest.mark.parametrize(
    ("option", "file", "message"),
    [
        ("--audio", "gone.wav", "gone.wav: No such file"),
        ("--video", "gone.gif", "gone.gif: No such file"),
        ("--audio", ".", ": Is a directory"),
        ("--video", "empty", "empty: the folder holds no files"),
        ("--audio", "red.gif", "red.gif: not a WAV file"),
        ("--video", "low.wav", "low.wav: not an image"),
        ("--audio", "cut.flac", "cut.flac: not a whole sound: "),
        ("--image", "red.gif", "image"),
    ],
)
def test_a_file_that_cannot_be_searched_by_is_one_line(
    option, file, message, playing, tmp_path, capsys, monkeypatch
):
    run, data = playing
    monkeypatch.setattr(Run, "load_model", lambda self: load_once(self.model))
    if file.startswith("cut"):
        pytest.importorskip("soundfile", reason='needs pip install "mmret_tf[audio]"')
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.flac").write_bytes(b"fLaC" + bytes(50))
    folder = data if (data / file).is_file() else tmp_path
    code, out, err = mmret(capsys, "search", "--run", run, option, folder / file)
    [line] = err.splitlines()
    assert code == 2 and line.startswith("mmret: ") and message in line and out == ""


def copied(run, folder, *files):
    """A copy of the model in a folder, where embeddings may be replaced."""
    folder.mkdir()
    for name in ("model.keras", *files):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_a_second_stage_ranks_again(run, photos, tmp_path, capsys):
    code, out, err = mmret(capsys, "search", "--run", run, "a picture of white", "--rerank")
    assert code == 0 and "The second stage changed nothing" in out, err  # there is a note as well
    options = ["--run", run, "--data", photos, "--split", "dev"]
    code, out, err = mmret(capsys, "evaluate", *options, "--rerank")
    assert code == 0 and "With the second stage:" in out, err
    assert "t2i_R@1" in json.loads((run / "evaluation.json").read_text())["reranked"]

    run = copied(run, tmp_path / "run", "reranker.keras")
    data = ["--run", run, "--data", photos]
    code, out, err = mmret(capsys, "embed", *data, "--split", "dev")
    assert code == 0 and (run / "parts").is_dir(), err
    code, out, err = mmret(capsys, "search", "--run", run, "a picture of white", "--rerank")
    assert code == 0 and "second stage" not in out and len(re.findall("png\n", out)) == 4, err
    code, out, err = mmret(capsys, "export", "--run", run, "--rerank", "--index", "none")
    assert code == 2 and "--rerank ranks a gallery" in err
    code, out, err = mmret(capsys, "sync", *data)
    assert code == 0 and "8 added" in out and len(EmbeddingStore.open(run / "parts")) == 13, err
    code, out, err = mmret(
        capsys, "export", "--run", run, "--rerank", "--directory", tmp_path / "m"
    )
    assert code == 2 and "needs a gallery of one modality; this has image, text" in err
    (run / "reranker.keras").unlink()
    code, out, err = mmret(capsys, "search", "--run", run, "a", "--rerank")
    assert code == 2 and "has no re-ranker: train with `mmret train --reranker`" in err


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_a_gallery_is_compressed_embedded_indexed_and_exported(run, photos, tmp_path, capsys):
    run = copied(run, tmp_path / "run")
    data = ["--run", run, "--data", photos]
    code, out, err = mmret(capsys, "compress", *data, "--split", "dev")
    assert code == 0 and "images a second" in out, err
    assert json.loads((run / "compression.json").read_text())["precision"] == "int8"
    code, out, err = mmret(capsys, "embed", *data, "--compressed", "--dtype", "float16")
    words = " ".join(out.split())
    assert code == 0 and "Image tower in int8." in words and "in float16 costs" in words, err
    assert "12 embeddings in" in words and not CONTROL.search(out)
    code, out, err = mmret(capsys, "index", "--run", run, "--recall-target", "0.5")
    assert code == 0 and "of 12 embeddings" in " ".join(out.split()), err
    code, out, err = mmret(capsys, "sync", *data)
    assert code == 0 and "0 added, 0 changed, 0 removed, 12 unchanged; 0 embedded." in out, err
    assert EmbeddingStore.open(run / "embeddings").form == "int8"  # by the tower of the gallery
    asked = ["search", "--run", run, "--image", photos / "7.png", "--top", 1, "--compressed"]
    code, out, err = mmret(capsys, *asked)
    assert code == 0 and "1.000" in out, err

    export = ["export", "--run", run, "--directory", tmp_path / "export" / "photos"]
    code, out, err = mmret(capsys, *export)
    assert code == 0 and f"docker run --rm -p 8500:8500 -p 8501:8501 -v {tmp_path}" in out, err
    assert (tmp_path / "export" / "photos" / "1" / "saved_model.pb").exists()
    code, out, err = mmret(capsys, *export, "--index", "none")
    assert code == 2 and "is never replaced; the next free one is 2" in err


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_a_gallery_of_one_split_and_one_of_text_alone(run, photos, tmp_path, capsys):
    run = copied(run, tmp_path / "run")
    code, out, err = mmret(capsys, "embed", "--run", run, "--data", photos, "--split", "dev")
    assert code == 0 and "Image tower in float32" in out and "4 embeddings" in out, err
    rows = '{"id": "a", "caption": "a red circle"}\n{"id": "b", "caption": "a blue square"}\n'
    (tmp_path / "notes.jsonl").write_text(rows)
    code, out, err = mmret(capsys, "embed", "--run", run, "--data", tmp_path / "notes.jsonl")
    assert code == 0 and "Image tower" not in out and "2 embeddings" in out, err
    code, out, err = mmret(capsys, "search", "--run", run, "--image", photos / "1.png")
    assert code == 0 and len(re.findall("  [ab]\n", out)) == 2, err


def test_a_folder_of_pictures_is_embedded_and_searched(run, tmp_path, capsys):
    run = copied(run, tmp_path / "run")
    for name, colour in (("a.png", "red"), ("2019/红.png", "blue")):
        path = tmp_path / "Pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(path)
    code, out, err = mmret(capsys, "embed", "--run", run, "--data", tmp_path / "Pictures")
    assert code == 0 and "2 embeddings" in out and not err
    code, out, err = mmret(capsys, "search", "--run", run, "red", "--gallery", tmp_path / "g.png")
    assert code == 0 and "a.png" in out and "红.png" in out, err
    assert (tmp_path / "g.png").exists()


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_a_gallery_is_kept_current(run, photos, tmp_path, capsys):
    run, pictures = copied(run, tmp_path / "run"), tmp_path / "Pictures"
    pictures.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (20, 20), colour).save(pictures / f"{colour}.png")
    sync = ["sync", "--run", run, "--data", pictures]
    code, out, err = mmret(capsys, *sync)
    assert code == 0 and "5 added, 0 changed, 0 removed, 0 unchanged; 5 embedded." in out, err
    code, _, err = mmret(capsys, "sync", "--run", run, "--data", photos)
    assert code == 2 and "5 of the 5 items of" in err and "--yes" in err
    (pictures / "red.png").unlink()
    (pictures / "blue.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 20), "yellow").save(pictures / "yellow.png")
    code, out, err = mmret(capsys, *sync, "--verify")
    assert code == 0 and "1 added, 0 changed, 2 removed, 3 unchanged; 1 embedded." in out, err
    assert "set aside: " in out and "blue.png" in " ".join(out.split())
    code, out, err = mmret(capsys, "search", "--run", run, "--image", pictures / "yellow.png")
    assert code == 0 and out.splitlines()[0].endswith("yellow.png"), err
    for path in pictures.iterdir():
        path.unlink()
    code, _, err = mmret(capsys, *sync, "--yes")
    assert code == 2 and "it holds nothing" in err  # such as the place of a disk that is missing


def test_the_columns_of_a_table_are_named_by_options(run, tmp_path, capsys):
    run = copied(run, tmp_path / "run")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "mine.csv").write_bytes("文件|说明\na.png|红\n".encode("gbk"))
    embed = ["embed", "--run", run, "--data", tmp_path / "mine.csv", "--encoding", "gbk"]
    code, _, err = mmret(capsys, *embed)
    assert code == 2 and "name them with image_column and caption_column" in err
    code, out, err = mmret(capsys, *embed, "--image-column", "文件", "--caption-column", "说明")
    assert code == 0 and "1 embeddings" in out, err
    assert EmbeddingStore.open(run / "embeddings").items[0]["captions"] == ["红"]


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_damaged_runs_answer_or_are_refused(trained, tmp_path):
    """More, and in a process of its own, by the script itself."""
    whole = shutil.copytree(trained[0].folder, tmp_path / "run")
    forge_runs.complete(whole)
    assert forge_runs.main(whole, 12, functools.partial(outcome_of, forge_runs.use)) == []


def test_a_full_disk_ends_an_index_in_one_line(trained, tmp_path):
    """All commands, with more or less space, by the script itself."""
    if not full_disk.can_mount():
        pytest.skip("file systems can be mounted by root alone")
    large = shutil.ignore_patterns("reranker.keras", "parts", "features", "plots", "logs")
    run = shutil.copytree(trained[0].folder, tmp_path / "run", ignore=large)  # the disk is small
    assert full_disk.main(run, commands=["index"], free=[0]) == []


@pytest.fixture
def given(monkeypatch):
    """The configurations that `mmret train` would have trained with."""
    configs = []

    def note(config, run):
        configs.append(config)
        return {"is_interrupted": True, "best_epoch": 3, "quarantined": [], "captions_cut": 2}

    monkeypatch.setattr(trainer, "train", note)
    monkeypatch.setattr(models, "build_index", lambda run: None)
    return configs


def test_options_win_over_the_configuration_and_lists_repeat(given, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text('{"data": "photos", "units": 8, "seed": 5, "scales": [64], "dropout": 0.5}')
    options = ["--config", file, "--run", tmp_path, "--seed", 3, "--weight-decay", 0]
    options += ["--scales", 224, "--scales", 288, "--no-bag-of-words", "--feature-layers", "conv4"]
    options += ["--corner-crops", 0.8, "--corner-crops", 0.7]
    code, out, err = mmret(capsys, "train", *options)
    assert code == 0 and "Interrupted: kept the model of epoch 3." in out, err
    assert "2 training captions are longer than --sequence-length and were cut." in out
    expected = TrainConfig(data="photos", units=8, seed=3, scales=(224, 288), dropout=0.5)
    changes = {"weight_decay": 0, "bag_of_words": False, "feature_layers": ("conv4",)}
    changes["corner_crops"] = (0.8, 0.7)
    assert given == [dataclasses.replace(expected, **changes)]
    assert mmret(capsys, "train", "--data", "photos", "--run", tmp_path)[0] == 0
    assert given[1] == TrainConfig(data="photos")

    file.write_text('{"unit": 8}')
    code, _, err = mmret(capsys, "train", *options)
    assert code == 2 and "did you mean 'units'?" in err and err.count("\n") == 1
    code, _, err = mmret(capsys, "train", "--run", tmp_path)
    assert code == 2 and "give --data, or --config" in err and len(given) == 2


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_every_setting_has_an_option_with_help(field):
    [option] = [each for each in COMMANDS["train"].params if each.name == field.name]
    name = field.name.replace("_", "-")
    assert option.opts == [f"--{name}"]
    assert option.secondary_opts == ([f"--no-{name}"] if field.type is bool else [])
    assert option.help.startswith(setting_help()[field.name]) and "Default: " in option.help
    assert option.multiple == isinstance(field.default, tuple) and not option.required


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--run", "gone", "a dog"], "no run at gone"),
        (["search", "--run", "gone", "a dog", "--where", "{red}"], "--where must be JSON"),
        (["evaluate", "--run", "gone", "--data", "scenes"], "no run at gone"),
        (["embed", "--run", "gone", "--data", "scenes"], "no run at gone"),
        (["sync", "--run", "gone", "--data", "scenes"], "no run at gone"),
        (["index", "--run", "gone"], "gone"),
        (["export", "--run", "gone"], "no run at gone"),
        (["compress", "--run", "gone", "--data", "gone"], "gone"),
        (["train", "--data", "gone", "--run", "r"], "gone"),
        (["inspect", "gone"], "there is no folder or captions file gone"),
        (["inspect", "."], "none of the layouts known"),
        (["inspect", __file__], "none of the layouts known"),
        (["inspect", "PHOTOS", "--split", "test"], "has no items of split 'test'"),
        (["inspect", "PHOTOS", "--separator", ";"], "separator does not apply to"),
        (["train", "--data", "gone\x1b[2J", "--run", "r"], "gone [2J"),
        (["train", "--data", "scenes", "--run", "r", "--rnn", "x"], "rnn must be one of"),
        (["train", "--data", "PHOTOS", "--run", "r", "--backbone", "X"], "no backbone 'X'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*set aside")
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments, message, photos, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = mmret(capsys, *(photos if each == "PHOTOS" else each for each in arguments))
    [line] = err.splitlines()
    assert code == 2 and line.startswith("mmret: ") and message in line and "\x1b" not in line


def test_debug_shows_the_traceback_and_all_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRET_DEBUG", "")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # as the package leaves it
    with pytest.raises(ValueError, match="no run at"):
        cli.main(["--debug", "search", "--run", str(tmp_path / "gone"), "a dog"])
    assert (os.environ["MMRET_DEBUG"], os.environ["TF_CPP_MIN_LOG_LEVEL"]) == ("1", "0")


@pytest.mark.parametrize("arguments", [["search", "--top", "0"], ["fly"], ["train"], []])
def test_usage_errors_exit_with_2(arguments, capsys):
    assert mmret(capsys, *arguments)[0] == 2


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "app", interrupt)
    code, _, err = mmret(capsys, "demo")
    assert code == 130 and err == "mmret: interrupted\n"


def test_the_storage_types_are_those_of_the_embedding_store():
    assert get_args(get_type_hints(galleries.embed)["dtype"]) == tuple(DTYPES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    code, out, _ = mmret(capsys, command, "--help")
    assert code == 0 and f"Example: mmret {command}" in re.sub(r"\s+", " ", out)


def test_doctor_reports_versions_and_problems(monkeypatch, capsys):
    code, out, _ = mmret(capsys, "doctor")
    assert code == 0 and "tensorflow  2.20" in out and "All of it fits together." in out
    monkeypatch.setattr(serving, "examine", lambda: ({"keras": "2.1"}, ["Keras is [old]."]))
    code, out, _ = mmret(capsys, "doctor")
    assert code == 1 and "PROBLEM: Keras is [old]." in out


HELPS = """
import runpy, sys
from mmret_tf.cli import main

def show(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except SystemExit as exit:
        assert not exit.code, exit.code

show(main, ["--help"])
show(main, ["train", "--help"])
show(main, ["search", "--help"])
sys.argv = ["mmret_tf", "--help"]
show(runpy.run_module, "mmret_tf", run_name="__main__")
print("slow to import:", {"tensorflow", "keras", "scann"} & set(sys.modules))
"""


def test_help_does_not_wait_for_tensorflow():
    done = python("-c", HELPS)
    assert done.returncode == 0, done.stderr
    for option in ("--image", "--audio", "--video"):
        assert re.search(rf"{option} +<path> +A file to search by: {option[2:]}\.", done.stdout)
    assert done.stdout.count("Usage:") == 4 and done.stdout.endswith("slow to import: set()\n")


def test_a_users_own_script_called_mmret_loads_the_model_of_a_run(trained, tmp_path):
    script = "import sys, mmret_tf as mm\nprint(type(mm.load_model(sys.argv[1])).__name__)\n"
    (tmp_path / "mmret.py").write_text(script)
    done = python(tmp_path / "mmret.py", trained[0].model)
    assert done.stdout == "DualEncoder\n", done.stderr
