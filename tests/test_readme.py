"""The README's Python runs as it stands, its commands exist, and its links lead somewhere."""

import dataclasses
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmret_tf.cli import app
from mmret_tf.training import TrainConfig
from mmret_tf.training.reranking import OF_SECOND_STAGE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "notebooks" / "README.zh-CN.md").read_text(encoding="utf-8")


def blocks(language, readme=README):
    return re.findall(rf"```{language}\n(.*?)```", readme, flags=re.DOTALL)


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert [result.rank for result in names["results"]] == [1, 2, 3, 4, 5]
    assert 0 <= names["metrics"]["t2i_R@10"] <= 1


def test_the_chinese_readme_stands_beside_the_english_one():
    assert blocks("python", CHINESE) == blocks("python")

    def outline(readme):
        return re.findall(r"^(#+ |```(?=\w)|!\[|- \*\*|\| \[)", readme, flags=re.MULTILINE)

    assert outline(CHINESE) == outline(README)


@pytest.mark.parametrize("readme", [README, CHINESE], ids=["README", "zh-CN"])
def test_the_commands_and_options_exist(readme):
    shown = blocks("bash", readme)
    lines = [line for block in shown for line in re.findall(r"mmret [a-z].*", block)]
    assert len(lines) >= 6
    for line in lines:
        command = line.split()[1]
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, line
        for option in re.findall(r"--[a-z-]+", line):
            assert option in shown.output, line


def test_the_recipes_of_flickr8k_can_be_read():
    plain, best, two_stage = (
        TrainConfig.load(ROOT / "data" / f"flickr8k{name}.json")
        for name in ("", "_best", "_two_stage")
    )
    assert plain.scales == best.scales == (224, 288, 352)
    first = {name: getattr(best, name) for name in OF_SECOND_STAGE}
    assert two_stage.reranker and dataclasses.replace(two_stage, **first) == best


def test_the_chinese_readme_has_the_same_figures():
    chinese = (ROOT / "notebooks" / "README.zh-CN.md").read_text(encoding="utf-8")
    shares = [re.findall(r"[\d.]+ %", text) for text in (README, chinese)]
    assert len(shares[0]) >= 4 and shares[0] == shares[1]


def test_the_readme_can_be_read_in_one_sitting():
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        *("data/README.md", "data/photographs/README.md"),
        *("notebooks/README.zh-CN.md", "tests/benchmarks/README.md"),
    ],
)
def test_links_and_pictures_exist(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / file).parent.joinpath(target).exists(), (
            target
        )


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    tests = README.split("## Tests")[1]
    for command in ('pip install -e ".[test]"', "pytest", "pytest notebooks"):
        assert re.search(rf"^{re.escape(command)}(  #.*)?$", tests, flags=re.MULTILINE), command
        assert f"\n{command}\n" in script, command
