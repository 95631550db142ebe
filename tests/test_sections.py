"""Every section number in code, notebooks and READMEs is one of the document's, with its title."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent

# The document's headings by number; a heading with numbered steps has a list of them.
HEADINGS = dict(
    line.split(maxsplit=1)
    for line in """\
1 背景介绍
1.1 信息检索的演变
1.2 多模态检索的兴起
1.3 深度学习的驱动
2 核心概念与联系
2.1 多模态数据
2.2 特征表示
2.3 模态融合
2.4 相似性度量
3 核心算法原理具体操作步骤
3.1 基于深度学习的多模态检索框架
3.2 具体操作步骤
4 数学模型和公式详细讲解举例说明
4.1 卷积神经网络
4.2 循环神经网络
4.3 余弦相似度
4.4 举例说明
5 项目实践：代码实例和详细解释说明
6 实际应用场景
7 总结：未来发展趋势与挑战
7.1 未来发展趋势
7.2 面临的挑战
8 附录：常见问题与解答
8.1 如何选择合适的深度学习模型？
8.2 如何处理模态缺失？
8.3 如何提高检索效率？
9 结束语""".splitlines()
)
RETRIEVAL = ["图像特征提取", "文本特征提取", "模态融合", "相似性度量", "检索排序"]
STEPS = {
    "3.1": ["数据预处理", "模型构建", "模态融合", "相似性度量", "检索排序"],
    "3.2": RETRIEVAL,
    "4.4": RETRIEVAL,
}

NUMBER = r"\d(?:\.\d)?(?:\(\d(?:, \d)*\))?"
NUMBERS = rf"{NUMBER}(?:(?:, | and |、){NUMBER})*"
# In a sentence, at the end of a heading or a docstring's first line, at the start of a table's row.
QUOTED = rf"[Ss]ections? ({NUMBERS})|^\"?#+ .*?\(({NUMBERS})\)|\(({NUMBERS})\)\.$"
QUOTED += rf"|^\| ({NUMBERS}) \w|[Ss]teps? ({NUMBERS}),"


def quoted(text):
    """The section numbers in a text, such as `3.1(5)`."""
    text = re.sub(r"(?i)(sections?|steps?)\n[ #]*", r"\1 ", text)
    text = re.sub(r"arXiv [\d.]+,\s[\s#]*section [\d.]+", "", text)  # of a paper
    for match in re.finditer(QUOTED, text, flags=re.MULTILINE):
        yield from re.findall(NUMBER, next(filter(None, match.groups())))


def is_of_the_document(number):
    section, *steps = re.findall(r"[\d.]+", number)
    return section in HEADINGS and all(
        1 <= int(step) <= len(STEPS.get(section, ())) for step in steps
    )


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


FILES = [
    *sorted((ROOT / "mmret_tf").rglob("*.py")),
    *(path for end in ("ipynb", "md") for path in sorted((ROOT / "notebooks").glob(f"*.{end}"))),
    *sorted((ROOT / "notebooks" / "zh").glob("*.ipynb")),
    ROOT / "README.md",
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_quoted_sections_exist(path):
    wrong = [number for number in quoted(text_of(path)) if not is_of_the_document(number)]
    assert not wrong


def test_the_checker_sees_wrong_numbers():
    text = """Sections 2.1, 3.1(6) and 7.3. See section
    # 9.1 and section 3.2(1, 2).
(arXiv 1706.02677,
    # section 7.9). ## Serving
## Serving 服务 (6, 6.2)
| 3.3、8.2 融合 | x |"""
    found = [*quoted(text)]
    assert found == ["2.1", "3.1(6)", "7.3", "9.1", "3.2(1, 2)", "6", "6.2", "3.3", "8.2"]
    wrong = [number for number in found if not is_of_the_document(number)]
    assert wrong == ["3.1(6)", "7.3", "9.1", "6.2", "3.3"]


def test_every_notebook_quotes_a_section_and_the_package_many():
    counts = {path: len([*quoted(text_of(path))]) for path in FILES}
    assert sum(counts.values()) > 200
    assert all(counts[path] for path in FILES if path.suffix == ".ipynb")


def steps_of(number):
    """A quoted number with its steps apart: 3.1(1, 2) is 3.1(1) and 3.1(2)."""
    section, *steps = re.findall(r"[\d.]+", number)
    return [f"{section}({step})" for step in steps] or [section]


# What can be taught: a section that has no parts, and each of the numbered steps.
TAUGHT = [
    step
    for number in HEADINGS
    if not any(other.startswith(f"{number}.") for other in HEADINGS)
    for step in ([f"{number}({n})" for n in range(1, 6)] if number in STEPS else [number])
]


def places(folder):
    """Where each section is taught, such as `04, 2`: the second section of notebook 04."""
    found = {number: [] for number in TAUGHT}
    for path in sorted(folder.glob("*.ipynb")):
        headings = re.findall(r"^## (\d+)\. (.*)$", text_of(path), flags=re.MULTILINE)
        for place, heading in headings:
            for number in quoted(f"## {heading}"):
                for step in steps_of(number):
                    found.setdefault(step, []).append(f"{path.stem[:2]}, {place}")
    return found


def test_the_notebooks_teach_every_section_and_the_table_says_where():
    found = places(ROOT / "notebooks")
    assert [number for number in TAUGHT if not found[number]] == []
    assert places(ROOT / "notebooks" / "zh") == found
    table = text_of(ROOT / "notebooks" / "README.md")
    rows = re.findall(r"^\| ([\d.()]+) [^|]*\| [^|]* \| (.*) \|$", table, flags=re.MULTILINE)
    assert {number: cell.split("; ") for number, cell in rows} == {
        number: found[number] for number in TAUGHT
    }


@pytest.mark.parametrize("path", sorted((ROOT / "mmret_tf").glob("*/__init__.py")))
def test_folders_have_the_titles_of_their_steps(path):
    for step, title in re.findall(r"Step 3\.1\((\d)\), [^(]*\((\w+)\)", text_of(path)):
        assert STEPS["3.1"][int(step) - 1] == title


@pytest.mark.parametrize("readme", ["README.md", "notebooks/README.zh-CN.md"])
def test_the_tables_of_the_readmes_have_the_titles_of_their_steps(readme):
    rows = re.findall(r"^\| 3\.1\((\d)\).*?(\w+) \|", text_of(ROOT / readme), flags=re.MULTILINE)
    assert [(int(step), title) for step, title in rows] == [*enumerate(STEPS["3.1"], 1)]
