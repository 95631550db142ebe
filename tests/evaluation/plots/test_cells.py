"""Diagrams of recurrent networks: one cell for each word, and gates with their names."""

import pytest
from drawn_texts import check_layout, has_chinese, texts_of

from mmret_tf.evaluation.plots import gru_cell, lstm_cell, unrolled_lstm

LONGEST = ["a", "small", "incomprehensible", "triangle", "above", "everything", "else"]


@pytest.mark.parametrize("words", [["red"], ["a", "red", "circle"], list("红色的圆"), LONGEST])
def test_an_lstm_has_a_cell_for_each_word(words):
    figure = unrolled_lstm(words)
    check_layout(figure)
    said = [text.get_text() for text in texts_of(figure)]
    assert {f"x{'₁₂₃₄₅₆₇'[n]}" for n in range(len(words))} <= set(said)
    assert sum(each.startswith("c") and len(each) == 2 for each in said) == len(words) - 1
    for term in ("隐藏状态的最大池化", "max-pooling", "或最后一个状态", "词嵌入", "句子向量"):
        assert any(term in each for each in said)
    for word in words:
        assert word in said or any(each.endswith("…") and each[:5] == word[:5] for each in said)


@pytest.mark.parametrize("words", [[], "red", ["a"] * 8])
def test_too_few_or_too_many_words_are_refused(words):
    with pytest.raises(ValueError, match="words must be a list of 1 to 7 tokens; got"):
        unrolled_lstm(words)


@pytest.mark.parametrize(
    ("figure", "gates"),
    [
        (
            lstm_cell,
            "forget gate 遗忘门, input gate 输入门, output gate 输出门, 候选记忆元, 隐藏状态",
        ),
        (gru_cell, "reset gate 重置门, update gate 更新门, 候选隐藏状态, hidden state 隐藏状态"),
    ],
)
def test_a_cell_names_its_gates_in_both_languages(figure, gates):
    figure = figure()
    check_layout(figure)
    said = " ".join(text.get_text().replace("\n", " ") for text in texts_of(figure))
    assert has_chinese(said)
    for gate in gates.split(", "):
        assert gate in said
