"""Diagrams of recurrent networks (循环网络示意图): an unrolled LSTM; the cells of LSTM and GRU."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmret_tf.evaluation.plots.figures import shortened
from mmret_tf.evaluation.plots.shapes import EDGE, IMAGE, JOINT, PLAIN, SMALL, TEXT, Box, Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_WORDS = 7  # of `unrolled_lstm`: more do not fit side by side

MATH = 12  # points: subscripts are small
DIGITS = "₀₁₂₃₄₅₆₇"


def unrolled_lstm(words: Sequence[str]) -> "Figure":
    """Draw an LSTM that reads a sentence word by word. Sections 2.2 and 4.2.

    Args:
        words: At most `MOST_WORDS` tokens; Chinese ones are single characters.

    Returns:
        A figure, from the bottom to the top: tokens, word vectors, cells, and the sentence's
        vector, by max-pooling of the hidden states or as the last of them.

    Raises:
        ValueError: There is no word, or too many, or `words` is a string.

    >>> figure = unrolled_lstm(["a", "red", "circle"])
    >>> figure = unrolled_lstm(list("红色的圆"))
    """
    n = len(words)
    if isinstance(words, str) or not 1 <= n <= MOST_WORDS:
        raise ValueError(f"words must be a list of 1 to {MOST_WORDS} tokens; got {words!r:.80}")
    page, step = Page(height=52), 65 / n
    for y, name in ((46, "tokens\n词元"), (36, "Embedding\n词嵌入"), (24.5, "cells\n单元")):
        page.label(11, y, name, SMALL, ha="right")
    name = "max-pooling of the hidden states 隐藏状态的最大池化"
    pooling = page.box(45.5, 9, 62, 6, name, JOINT)
    vector = page.box(90, 9, 15, 8, "sentence vector\n句子向量", JOINT, SMALL)
    page.arrow(pooling, vector)
    cells: list[Box] = []
    for number, word in enumerate(words, 1):
        x = 13 + step * (number - 0.5)
        width, cell_width = min(0.86 * step, 14), min(0.55 * step, 10)
        token = page.box(x, 46, width, 5, shortened(word, round(width)), PLAIN, SMALL)
        embedding = page.box(x, 36, cell_width, 5, f"x{DIGITS[number]}", TEXT, SMALL)
        cell = page.box(x, 24.5, cell_width, 8, "LSTM", TEXT, SMALL)
        page.chain(token, embedding, cell)
        page.arrow((x, cell.top), (x, pooling.bottom))
        page.label(x + 0.6, 16, f"h{DIGITS[number]}", ha="left")
        cells.append(cell)
    for number, (one, other) in enumerate(zip(cells, cells[1:], strict=False), 1):
        for y, above, name in ((23, -1.6, "h"), (26, 1.8, "c")):
            page.arrow((one.right, y), (other.left, y))
            page.label((one.right + other.left) / 2, y + above, f"{name}{DIGITS[number]}")
    last = cells[-1]
    page.path((last.right, 24.5), (90, 24.5), (90, vector.bottom), line="--")
    page.label(90, 27.5, "or the last state\n或最后一个状态", SMALL)
    return page.figure


def lstm_cell() -> "Figure":
    """Draw the gates of an LSTM cell. Section 4.2.

        c = forget * c + input * candidate;  h = output * tanh(c)

    Returns:
        A figure: the cell state along the top, the gates below it.

    >>> figure = lstm_cell()
    """
    page = Page(height=52)
    forget, write, candidate, read = (
        page.box(x, 33, 14, 8, text, fill, SMALL)
        for x, text, fill in (
            (22, "σ  forget gate\n遗忘门", TEXT),
            (40, "σ  input gate\n输入门", TEXT),
            (58, "tanh candidate\n候选记忆元", IMAGE),
            (76, "σ  output gate\n输出门", TEXT),
        )
    )
    keep, add = _operation(page, 22, 9, "×"), _operation(page, 49, 9, "+")
    scaled = _operation(page, 49, 21, "×")
    squash, out = page.box(88, 15.5, 6, 3.6, "tanh", PLAIN, SMALL), _operation(page, 88, 23, "×")
    page.chain(forget, keep, add)
    page.chain(scaled, add)
    page.path((write.x, write.top), (write.x, 21), (scaled.left, 21))
    page.path((candidate.x, candidate.top), (candidate.x, 21), (scaled.right, 21))
    page.path((read.x, read.top), (read.x, 23), (out.left, 23))
    page.arrow((12, 9), keep)
    page.arrow(add, (96, 9))
    page.arrow((88, 9), squash)
    page.chain(squash, out)
    page.path((88, out.bottom), (88, 33), (96, 33))
    _inputs(page, [forget, write, candidate, read])
    page.label(6.5, 9, "cₜ₋₁", MATH)
    page.label(91, 4.5, "cₜ", MATH)
    page.label(88, 4.5, "cell state 记忆元", SMALL, ha="right")
    page.label(91, 30, "hₜ", MATH)
    page.label(91, 37.5, "hidden state\n隐藏状态", SMALL)
    return page.figure


def gru_cell() -> "Figure":
    """Draw the gates of a GRU cell. Section 4.2.

        h = update * h + (1 - update) * candidate

    Returns:
        A figure: the hidden state along the top, the gates below it.

    >>> figure = gru_cell()
    """
    page = Page(height=52)
    reset, update, candidate = (
        page.box(x, 33, 15, 8, text, fill, SMALL)
        for x, text, fill in (
            (24, "σ  reset gate\n重置门", TEXT),
            (50, "σ  update gate\n更新门", TEXT),
            (78, "tanh candidate\n候选隐藏状态", IMAGE),
        )
    )
    kept, new = _operation(page, 50, 9, "×"), _operation(page, 78, 21, "×")
    add, forgotten = _operation(page, 78, 9, "+"), _operation(page, 24, 21, "×")
    rest = page.box(64, 21, 8, 3.6, "1 − z", PLAIN, SMALL)
    page.arrow((12, 9), kept)
    page.chain(update, kept, add)
    page.chain(candidate, new, add)
    page.chain(rest, new)
    page.arrow((50, 21), rest)
    page.label(51, 25.5, "z", MATH, ha="left")
    page.chain(reset, forgotten)
    page.arrow((24, 9), forgotten)
    page.label(25, 25.5, "r", MATH, ha="left")
    page.path((forgotten.right, 21), (37, 21), (37, 40), (74, 40), (74, candidate.bottom))
    page.arrow(add, (96, 9))
    _inputs(page, [reset, update, candidate])
    page.label(6.5, 9, "hₜ₋₁", MATH)
    page.label(91, 4.5, "hₜ", MATH)
    page.label(88, 4.5, "hidden state 隐藏状态", SMALL, ha="right")
    page.label(62, 37.8, "r × hₜ₋₁", MATH)
    page.label(79, 41, "xₜ", MATH, ha="left")
    return page.figure


def _operation(page: Page, x: float, y: float, sign: str) -> Box:
    return page.box(x, y, 3.4, 3.4, sign, "white")


def _inputs(page: Page, gates: Sequence[Box]) -> None:
    """The line of the inputs, which every gate reads."""
    page.axes.plot([14, gates[-1].x], [46, 46], color=EDGE, linewidth=1)
    for gate in gates:
        page.arrow((gate.x, 46), gate)
    page.label(7, 44.5, "hₜ₋₁, xₜ", MATH)
    page.label(7, 48.5, "inputs 输入", SMALL)
