"""Diagrams: they name their parts in English and in Chinese, and every text can be read."""

import pytest
from drawn_texts import check_layout, has_chinese, texts_of

from mmret_tf.evaluation.plots import decision_tree, fusions, query_to_rank, two_towers

TREE = (
    "how many pairs?\n有多少图文对？",
    ("few 少", "frozen CNN\n冻结的 CNN"),
    (
        "many 多",
        ("a GPU?\n有 GPU 吗？", ("no 否", "LSTM"), ("yes 是", "Transformer,\nfine-tuned\n微调")),
    ),
)


@pytest.mark.parametrize(
    ("figure", "terms"),
    [
        (two_towers, "image tower 图像塔, text tower 文本塔, unit vectors 单位向量, CNN, LSTM"),
        (
            two_towers,
            "positives 正样本, negatives 负样本, pictures 图像, captions 说明文字, 余弦矩阵",
        ),
        (fusions, "join at the input layer 在输入层拼接, early fusion 早期融合"),
        (fusions, "late fusion 晚期融合, hybrid fusion 混合融合, attention 注意力"),
        (query_to_rank, "offline, 离线, online, 在线, gallery 图库, query 查询, index 索引"),
        (query_to_rank, "nearest leaves 最近的叶, reorder, re-ranker 重排序器, ranked results"),
        (lambda: decision_tree(TREE), "how many pairs? 有多少图文对？, few 少, yes 是, LSTM"),
    ],
)
def test_a_diagram_names_its_parts_in_both_languages(figure, terms):
    said = " ".join(text.get_text().replace("\n", " ") for text in texts_of(figure()))
    for term in terms.split(", "):
        assert term in said


@pytest.mark.parametrize("figure", [two_towers, fusions, query_to_rank])
def test_every_text_can_be_read(figure):
    figure = figure()
    check_layout(figure)
    assert figure.get_facecolor() == (1, 1, 1, 1)  # also on a dark page
    assert figure.get_figwidth() == 9
    words = [text for text in texts_of(figure) if len(text.get_text()) > 5]
    assert sum(has_chinese(text.get_text()) for text in words) / len(words) > 0.95  # but "LSTM"
    assert min(text.get_fontsize() for text in words) > 8


def test_the_positives_are_the_diagonal():
    figure = two_towers()
    fill_of = {
        text.get_text(): patch.get_facecolor()
        for text in texts_of(figure)
        for patch in figure.axes[0].patches
        if patch.get_window_extent().contains(*_middle(text))
    }
    positives = {fill_of[f"u{n}·v{n}"] for n in "₁₂₃"}
    negatives = {fill_of[f"u{n}·v{m}"] for n in "₁₂₃" for m in "₁₂₃" if n != m}
    assert len(positives) == len(negatives) == 1 and positives != negatives


def _middle(text):
    box = text.get_window_extent()
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def test_a_tree_grows_with_its_leaves_and_stays_readable():
    small, large = decision_tree("one leaf 一个叶"), decision_tree(TREE)
    for figure in (small, large):
        check_layout(figure)
    assert small.get_figheight() < large.get_figheight()
    place = {text.get_text(): _middle(text) for text in texts_of(large)}
    root, question = place[TREE[0]], place["a GPU?\n有 GPU 吗？"]
    assert root[0] < question[0] < place["LSTM"][0]  # from left to right
    assert place["frozen CNN\n冻结的 CNN"][1] > place["LSTM"][1]  # in the order of the answers


@pytest.mark.parametrize(
    "tree",
    [["a?", ("yes", "b")], ("a?",), ("a?", "b"), ("a?", ("yes",)), ("a?", ("yes", 1)), None],
)
def test_what_is_no_tree_is_refused(tree):
    with pytest.raises(ValueError, match="a tree must be a string, or a tuple of a question"):
        decision_tree(tree)
