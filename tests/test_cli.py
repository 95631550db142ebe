"""The command line: each command in turn on one small run, and mistakes told in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_backbone, make_mixed_collection
from PIL import Image
from rich.console import Console

from mmret_tf import cli
from mmret_tf.compression import PRECISIONS
from mmret_tf.doctor import examine, installed_version, keras_problem
from mmret_tf.embeddings import DTYPES
from mmret_tf.published import published_results
from mmret_tf.tables import published_table

COLOURS = ("red", "blue", "green", "black", "white")
COMMANDS = ("demo", "train", "evaluate", "compress", "embed", "index", "search", "export", "doctor")


def mmret(capsys, *arguments):
    """Run the command in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["image,caption,split"]
    for number in range(10):
        Image.new("RGB", (20, 20), COLOURS[number % 5]).save(folder / f"{number}.png")
        split = "train" if number < 6 else "dev"
        rows.append(f"{number}.png,a picture of {COLOURS[number % 5]},{split}")
    rows[-1] = rows[-1].replace("white", "white \x1b[2J")  # would clear a terminal
    (folder / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    make_backbone().save(tmp_path / "backbone.keras")
    return folder


def test_a_run_can_be_repeated_from_its_configuration(photos, tmp_path, capsys):
    settings = {"data": str(photos), "backbone": str(tmp_path / "backbone.keras"), "epochs": 1}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**settings, "image_size": 32, "batch_size": 4, "units": 8}))
    options = ["--config", config, "--run", tmp_path / "run", "--seed", 3]
    code, out, err = mmret(capsys, "train", *options)
    assert code == 0, err
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["units"], saved["batch_size"], saved["seed"]) == (8, 4, 3)
    config.write_text('{"unit": 8}')
    code, out, err = mmret(capsys, "train", *options)
    assert code == 2 and "did you mean 'units'?" in err and err.count("\n") == 1
    code, out, err = mmret(capsys, "train", "--run", tmp_path / "run")
    assert code == 2 and "give --data, or --config" in err


def test_what_was_measured_on_flickr8k_stands_beside_what_was_published(capsys):
    metrics = {f"{way}_R@{k}": 0.1234 for way in ("i2t", "t2i") for k in (1, 5, 10)}
    table = published_table(metrics, published_results(["1000268201_693b08cb0e.jpg"]))
    Console(width=120).print(table)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("│")[1].strip(): line.split("│")[2:8] for line in lines if "│" in line}
    assert [cell.strip() for cell in rows["measured here"]] == ["12.3"] * 6
    assert [float(cell) for cell in rows["NAA, ResNet"]] == [37.2, 68.1, 79.1, 27.7, 59.6, 71.8]
    assert [cell.strip() for cell in rows["ITMeetsAL 2019, MobileNet"]][3:] == ["-"] * 3


def test_from_pictures_to_ranked_results(photos, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--data", photos, "--backbone", tmp_path / "backbone.keras", "--run", run]
    code, out, err = mmret(
        capsys, "train", *options, "--image-size", 32, "--epochs", 2, "--batch-size", 6
    )
    assert code == 0, err
    assert "text to image" in out and "mmret search --run" in out

    code, out, err = mmret(capsys, "evaluate", "--run", run, "--data", photos, "--split", "dev")
    assert code == 0 and "4 images, 4 captions" in out and "100.0% ±0.0" in out
    assert "UVS" not in out  # these are no photographs of Flickr8k
    assert json.loads((run / "evaluation.json").read_text())["t2i_R@10"] == 1

    options = ["--data", photos, "--folds", 2, "--plots"]
    code, out, err = mmret(capsys, "evaluate", "--run", run, *options)
    assert code == 0 and "mean of 2 folds" in out, err
    pictures = sorted(path.name for path in (run / "plots").iterdir())
    assert pictures == ["best.png", "curves.png", "recall.png", "similarities.png", "worst.png"]

    assert mmret(capsys, "embed", "--run", run, "--data", photos, "--split", "dev")[0] == 0
    code, out, err = mmret(capsys, "index", "--run", run)
    assert code == 0 and "of 4 embeddings" in out
    assert "exact search, recall 1.000" in " ".join(out.split())  # wherever the line is broken

    picture = tmp_path / "gallery.png"
    code, out, err = mmret(
        capsys, "search", "--run", run, "a picture of white", "--top", 4, "--gallery", picture
    )
    assert code == 0, err
    place, caption = out.splitlines()[:2]
    place = re.fullmatch(rf"  1  -?\d\.\d{{3}}  {re.escape(str(photos))}/(\d)\.png", place)
    assert f"a picture of {COLOURS[int(place[1]) % 5]}" in caption
    assert out.count("a picture of") == 4 and "[2J" in out and "\x1b" not in out
    assert Image.open(picture).size[0] > 3 * 160
    code, out, err = mmret(capsys, "search", "--run", run, "--image", photos / "7.png", "--top", 1)
    assert code == 0 and "1.000" in out
    code, out, err = mmret(capsys, "search", "--run", run, "red", "--where", '{"prise": 5}')
    assert code == 2 and "no item has the attribute 'prise'" in err

    code, out, err = mmret(capsys, "compress", "--run", run, "--data", photos, "--split", "dev")
    assert code == 0 and "images a second" in out, err
    assert json.loads((run / "compression.json").read_text())["precision"] == "int8"
    again = ["embed", "--run", run, "--data", photos, "--compressed", "--dtype", "float16"]
    code, out, err = mmret(capsys, *again)
    assert code == 0 and "Image tower in int8." in out and "in float16 costs" in out, err
    assert mmret(capsys, "index", "--run", run)[0] == 0
    asked = ["search", "--run", run, "--image", photos / "7.png", "--top", 1, "--compressed"]
    code, out, err = mmret(capsys, *asked)
    assert code == 0 and "1.000" in out, err

    export = ["export", "--run", run, "--directory", tmp_path / "export" / "photos"]
    code, out, err = mmret(capsys, *export)
    assert code == 0 and f"docker run --rm -p 8500:8500 -p 8501:8501 -v {tmp_path}" in out, err
    assert (tmp_path / "export" / "photos" / "1" / "saved_model.pb").exists()
    code, out, err = mmret(capsys, *export)
    assert code == 2 and "a version is never replaced: the next free one is 2" in err
    code, out, err = mmret(capsys, *export, "--version", 2, "--index", "none")
    assert code == 0, err

    # As a user does it: the script in a process of its own, where nothing is imported yet.
    script = Path(sys.executable).with_name("mmret")
    done = subprocess.run(
        [script, "search", "--run", run, "a picture of red", "--top", "3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall("a picture of", done.stdout)) >= 3


@pytest.mark.filterwarnings("ignore:.*put aside")
def test_a_collection_with_text_alone_and_several_images(tmp_path, capsys):
    photos, run = make_mixed_collection(tmp_path / "mixed"), tmp_path / "run"
    make_backbone().save(tmp_path / "backbone.keras")
    options = ["--data", photos, "--backbone", tmp_path / "backbone.keras", "--run", run]
    code, out, err = mmret(
        capsys, "train", *options, "--image-size", 32, "--epochs", 1, "--batch-size", 4
    )
    assert code == 0 and "put aside: gone.png" in out, err
    search = ["search", "--run", run, "a red circle", "--gallery", tmp_path / "gallery.png"]
    code, out, err = mmret(capsys, *search)
    places = [line.split()[2] for line in out.splitlines() if re.match(r" +\d  -?\d\.", line)]
    expected = ["red.png", "blue.png", "alone.png", "dev.png"]
    expected = [str(photos / name) for name in expected] + ["note", "dev"]
    assert code == 0 and sorted(places) == sorted(expected), err

    code, out, err = mmret(capsys, "embed", "--run", run, "--data", photos, "--split", "dev")
    assert code == 0 and "Image tower in" in out and "2 embeddings" in out, err
    rows = '{"id": "a", "caption": "a red circle"}\n{"id": "b", "caption": "a blue square"}\n'
    (tmp_path / "notes.jsonl").write_text(rows)
    code, out, err = mmret(capsys, "embed", "--run", run, "--data", tmp_path / "notes.jsonl")
    assert code == 0 and "Image tower in" not in out and "2 embeddings" in out, err
    assert mmret(capsys, "index", "--run", run)[0] == 0
    code, out, err = mmret(capsys, "search", "--run", run, "--image", photos / "red.png")
    assert code == 0 and len(re.findall("  [ab]\n", out)) == 2, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--run", "gone", "a dog"], "no run at gone"),
        (["search", "--run", "gone", "a dog", "--where", "{red}"], "--where must be JSON"),
        (["evaluate", "--run", "gone", "--data", "scenes"], "no model at gone"),
        (["index", "--run", "gone"], "gone"),
        (["export", "--run", "gone"], "no run at gone"),
        (["compress", "--run", "gone", "--data", "scenes"], "no model at gone"),
        (["train", "--data", "gone", "--run", "r"], "gone"),
        (["train", "--data", "scenes", "--run", "r", "--rnn", "x", "--scenes", 5], "rnn must be"),
        (["train", "--data", "scenes", "--run", "r", "--backbone", "X", "--scenes", 5], "no backb"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = mmret(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("mmret: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0]
    assert "Traceback" not in err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="no run at"):
        cli.main(["--debug", "search", "--run", str(tmp_path / "gone"), "a dog"])


@pytest.mark.parametrize("arguments", [["search", "--top", "0"], ["fly"], ["train"]])
def test_usage_errors_exit_with_2(arguments, capsys):
    assert mmret(capsys, *arguments)[0] == 2


def test_the_choices_are_those_of_the_modules():
    assert [choice.value for choice in cli.Precision] == list(PRECISIONS)
    assert [choice.value for choice in cli.Dtype] == list(DTYPES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    code, out, _ = mmret(capsys, command, "--help")
    assert code == 0 and f"Example: mmret {command}" in re.sub(r"\s+", " ", out)


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    code, _, err = mmret(capsys, "demo")
    assert code == 130 and err == "mmret: interrupted\n"


def test_doctor_finds_this_environment_healthy(capsys):
    code, out, _ = mmret(capsys, "doctor")
    assert code == 0, out
    for name in ("Python", "tensorflow", "keras", "scann", "CPU features"):
        assert name in out
    assert installed_version("keras") in out


def test_doctor_says_what_does_not_fit(monkeypatch, capsys):
    versions = {"tensorflow": "2.21.0", "keras": "2.15.0", "scann": None}
    real = installed_version
    monkeypatch.setattr(
        "mmret_tf.doctor.installed_version", lambda name: versions.get(name, real(name))
    )
    code, out, _ = mmret(capsys, "doctor")
    words = re.sub(r"\s+", " ", out)
    assert code == 1
    assert "needs Keras 3, found 2.15.0" in words
    assert "TensorFlow 2.20 is needed, found 2.21.0" in words
    assert sys.platform != "linux" or "ScaNN 1.4.2 is the one built for TensorFlow 2.20" in words


def test_doctor_reports_a_package_that_does_not_load(monkeypatch):
    def broken(module):
        raise OSError("undefined symbol: _ZN10tensorflow")

    monkeypatch.setattr("importlib.import_module", broken)
    _, problems = examine()
    assert any("cannot be loaded: undefined symbol" in problem for problem in problems)


def test_another_keras_backend_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert "KERAS_BACKEND says 'jax'" in keras_problem()
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert "says 'torch'" in keras_problem()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert keras_problem() is None
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert "asks for Keras 2" in keras_problem()


def test_importing_beside_another_backend_is_a_clear_error():
    done = subprocess.run(
        [sys.executable, "-c", "import mmret_tf"],
        env={"KERAS_BACKEND": "jax", "PATH": "", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ImportError: mmret_tf needs the TensorFlow backend" in done.stderr.splitlines()[-1]


def test_a_users_own_script_may_be_called_mmret(tmp_path):
    (tmp_path / "mmret.py").write_text("import mmret_tf as mm\nprint(mm.load_pairs.__name__)\n")
    done = subprocess.run(
        [sys.executable, tmp_path / "mmret.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "load_pairs\n"
