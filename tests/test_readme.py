"""The README's Python runs as it stands, its commands exist, and its links lead somewhere."""

import re
from pathlib import Path

from typer.testing import CliRunner

from mmret_tf.cli import app
from mmret_tf.config import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert [result.rank for result in names["results"]] == [1, 2, 3, 4, 5]
    assert 0 <= names["metrics"]["t2i_R@10"] <= 1


def test_the_commands_and_options_exist():
    lines = [line for block in blocks("bash") for line in re.findall(r"mmret [a-z].*", block)]
    assert len(lines) >= 6
    for line in lines:
        command = line.split()[1]
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, line
        for option in re.findall(r"--[a-z-]+", line):
            assert option in shown.output, line


def test_the_configurations_can_be_read(tmp_path):
    (written,) = re.findall(r"echo '(.*?)' > fine_tune.json", README, flags=re.DOTALL)
    (tmp_path / "fine_tune.json").write_text(written, encoding="utf-8")
    assert TrainConfig.load(tmp_path / "fine_tune.json").thaw_from == "conv5_block1_1_conv"
    for name in re.findall(r"--config (data/\S+)", README):
        assert TrainConfig.load(ROOT / name).scales == (224, 288, 352)


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    tests = README.split("## Tests")[1]
    for command in ('pip install -e ".[test]"', "pytest", "pytest notebooks"):
        assert re.search(rf"^{re.escape(command)}(  #.*)?$", tests, flags=re.MULTILINE), command
        assert f"\n{command}\n" in script, command
