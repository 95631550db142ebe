"""Diagrams of a retrieval system (示意图): two towers, fusions, and a search from query to rank.

All labels are in English and in Chinese. Each function returns a figure, which Jupyter shows.
"""

from typing import TYPE_CHECKING, TypeAlias

from mmret_tf.evaluation.plots.shapes import IMAGE, JOINT, PLAIN, SMALL, TEXT, Box, Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The batch of `two_towers`: marker and colour of each drawn shape, and its caption.
BATCH = (
    ("o", "tab:red", "a red circle\n红色的圆"),
    ("s", "tab:blue", "a blue square\n蓝色的方块"),
    ("^", "tab:green", "a green triangle\n绿色的三角形"),
)

# A leaf, or a question with an answer and a tree for each branch.
Tree: TypeAlias = "str | tuple[str | tuple[str, Tree], ...]"
ANSWER, LINE, GAP = 15, 2.3, 1.6  # width of an answer, height of a line, space between leaves

# The panels of `fusions`: a title, and what comes from the top to the bottom. A row is one box, or
# one of the picture and one of the text.
FUSIONS = (
    (
        "join at the input layer\n在输入层拼接",
        (("pixels\n像素", "words\n词"), "one long vector\n拼成一个长向量", "one network\n一个网络"),
    ),
    (
        "early fusion\n早期融合",
        (
            ("pixels\n像素", "words\n词"),
            ("regions\n区域特征", "word vectors\n词向量"),
            "one sequence\n拼成一个序列",
            "one Transformer\n一个 Transformer",
        ),
    ),
    (
        "late fusion\n晚期融合",
        (
            ("pixels\n像素", "words\n词"),
            ("CNN\n卷积网络", "LSTM\n循环网络"),
            ("image vector\n图像向量", "text vector\n文本向量"),
            "concatenate or sum\n拼接或加权求和",
        ),
    ),
    (
        "hybrid fusion\n混合融合",
        (
            ("pixels\n像素", "words\n词"),
            ("regions\n区域特征", "word vectors\n词向量"),
            ("attention\n注意力", "attention\n注意力"),
            "weighted sum\n加权求和",
        ),
    ),
)


def two_towers() -> "Figure":
    """Draw a batch on its way through both towers to the matrix of its cosines. Sections 2.2, 3.2.

    Returns:
        A figure: pictures and captions, the image tower and the text tower, unit vectors, and the
        matrix with the positives on the diagonal.

    >>> figure = two_towers()
    """
    page = Page(height=53)
    page.label(8.5, 3, "pictures 图像")
    page.label(8.5, 50, "captions 说明文字")
    for row, (marker, colour, caption) in enumerate(BATCH):
        page.box(8.5, 9 + 7.6 * row, 9, 7, fill="white")
        page.axes.plot(8.5, 9 + 7.6 * row, marker, color=colour, markersize=20)
        page.box(8.5, 31.5 + 6.6 * row, 15, 6, caption, size=SMALL)

    cnn = page.box(27.5, 17.6, 13, 8, "CNN\n卷积网络", IMAGE)
    head = page.box(47, 17.6, 12, 8, "head\n投影头", IMAGE)
    images = page.frame([cnn, head], "image tower 图像塔")
    words = page.box(27, 39.1, 12, 8, "Embedding\n词嵌入", TEXT)
    lstm = page.box(39, 39.1, 6, 8, "LSTM", TEXT)
    text_head = page.box(49, 39.1, 8, 8, "head\n投影头", TEXT)
    texts = page.frame([words, lstm, text_head], "text tower 文本塔")
    page.chain(cnn, head)
    page.chain(words, lstm, text_head)
    page.arrow((13, 16.6), (images.left, 16.6))
    page.arrow((16, 38.1), (texts.left, 38.1))
    page.arrow((images.right, 16.6), (59, 16.6))
    page.path((texts.right, 38.1), (80, 38.1), (80, 32))
    _cosines(page, 16.6)
    return page.figure


def _cosines(page: Page, middle: float) -> None:
    """The unit vectors to the left of the matrix of their cosines and below it."""
    width, height = 9, 6.5
    page.label(62, 3.5, "unit vectors\n单位向量", SMALL)
    page.label(80, 3.5, "cosines of the batch\n一个批量的余弦矩阵")
    for row, u in enumerate(("u₁", "u₂", "u₃")):
        y = middle + height * (row - 1)
        page.box(62, y, 6, 4.6, u, IMAGE)
        for column, v in enumerate(("v₁", "v₂", "v₃")):
            x = 80 + width * (column - 1)
            page.box(x, y, width, height, f"{u}·{v}", JOINT if row == column else "white")
        page.box(80 + width * (row - 1), middle + 13, 6, 4.6, f"v{u[1]}", TEXT)
    for x, fill, name in ((65, JOINT, "positives 正样本"), (83, "white", "negatives 负样本")):
        page.box(x, 48, 3, 2.4, fill=fill)
        page.label(x + 2.5, 48, name, SMALL, ha="left")


def fusions() -> "Figure":
    """Draw where a picture and a text are joined: at the input, early, late or both. Section 2.3.

    Returns:
        A figure of four panels; the first is the document's "join at the input layer" to the
        letter.

    >>> figure = fusions()
    """
    page = Page(height=58)
    for number, (title, rows) in enumerate(FUSIONS):
        x = 13 + 24.7 * number
        page.label(x, 4, title)
        shown = [_row(page, x, 12 + 10 * place, row) for place, row in enumerate(rows)]
        shown.append([page.box(x, 53, 18, 6, "vector\n向量", JOINT, SMALL)])
        for above, below in zip(shown, shown[1:], strict=False):
            for one, other in zip(above, below if len(below) > 1 else above, strict=True):
                page.arrow((one.x, one.bottom), (other.x, below[0].top))
        if number == len(FUSIONS) - 1:  # each of the two attends to the other, too
            (image, text), (to_image, to_text) = shown[1:3]
            page.arrow((image.x + 2, image.bottom), (to_text.x - 2, to_text.top))
            page.arrow((text.x - 2, text.bottom), (to_image.x + 2, to_image.top))
        else:
            page.axes.plot([x + 12.35] * 2, [2, 56], color="lightgrey", linewidth=1)
    return page.figure


def _row(page: Page, x: float, y: float, texts: str | tuple[str, str]) -> list[Box]:
    """One wide box, or a box of the picture and one of the text."""
    if isinstance(texts, str):
        return [page.box(x, y, 22, 6, texts, JOINT, SMALL)]
    sides = zip((x - 5.7, x + 5.7), texts, (IMAGE, TEXT), strict=True)
    return [page.box(place, y, 10.8, 6, text, fill, SMALL) for place, text, fill in sides]


def query_to_rank() -> "Figure":
    """Draw a search: a gallery that becomes an index, a query that becomes a ranking. Section 3.1.

    Returns:
        A figure: above, what is done once and offline; below, what is done for each query.

    >>> figure = query_to_rank()
    """
    page, step = Page(height=44), 14.2
    page.label(1.5, 3, "offline: once for the gallery 离线：图库只处理一次", ha="left")
    offline = [
        page.box(7 + step * place, 13.4, 11, 8, text, IMAGE, SMALL)
        for place, text in enumerate(("gallery\n图库", "image tower\n图像塔", "embeddings\n嵌入"))
    ]
    x = 7 + 3 * step
    leaves = [
        page.box(x + 4 * (place % 3 - 1), 11.6 + 3.6 * (place // 3), 3, 2.6, fill=fill)
        for place, fill in enumerate((PLAIN, JOINT, PLAIN, PLAIN, JOINT, PLAIN))
    ]
    index = page.frame(leaves, "index 索引", space=1.2)
    page.chain(*offline)
    page.arrow((offline[-1].right, 13.4), (index.left, 13.4))
    for y, fill, name in (
        (11, PLAIN, "leaf: embeddings near each other\n叶子：彼此相近的嵌入"),
        (17, JOINT, "leaves that are nearest to the query\n离查询最近的叶子"),
    ):
        page.box(64, y, 3, 2.6, fill=fill)
        page.label(67, y, name, SMALL, ha="left")

    page.axes.plot([1.5, 98.5], [23, 23], color="lightgrey", linewidth=1)
    page.label(1.5, 26, "online: for each query 在线：每次查询", ha="left")
    texts = ("query\n查询", "text tower\n文本塔", "embedding\n嵌入", "nearest\nleaves\n最近的叶子")
    texts += ("reorder\n重新打分", "re-ranker\n重排序器", "ranked\nresults\n排序结果")
    fills = (TEXT, TEXT, TEXT, JOINT, JOINT, JOINT, PLAIN)
    online = [
        page.box(7 + step * place, 35, 11, 9, text, fill, SMALL, "--" if place == 5 else "-")
        for place, (text, fill) in enumerate(zip(texts, fills, strict=True))
    ]
    page.chain(*online)
    page.arrow(index, online[3])
    page.label(online[5].x, 41.5, "optional 可选", SMALL)
    return page.figure


def decision_tree(tree: Tree) -> "Figure":
    """Draw a tree of choices, from a question on the left to the answers on the right. Section 8.1.

    Args:
        tree: A string is a leaf. A question is a tuple: its text, and for each answer a tuple of
            the answer and the tree that follows. Lines are broken by a line feed.

    Returns:
        A figure as high as its leaves need.

    Raises:
        ValueError: `tree`, or a part of it, is neither.

    >>> few, many = ("yes 是", "frozen CNN 冻结"), ("no 否", "fine-tuned CNN 微调")
    >>> figure = decision_tree(("few pairs? 图文对少吗？", few, many))
    """
    leaves, depth = _measured(tree)
    page = Page(height=2 + sum(map(_height, leaves)))
    width = (97 - ANSWER * (depth - 1)) / depth
    _grow(page, tree, 1.5 + width / 2, 1, width)
    return page.figure


def _measured(tree: Tree) -> tuple[list[str], int]:
    """The leaves from the top to the bottom, and the number of columns."""
    if isinstance(tree, str):
        return [tree], 1
    is_question = isinstance(tree, tuple) and len(tree) > 1 and isinstance(tree[0], str)
    if not is_question or any(not isinstance(each, tuple) or len(each) != 2 for each in tree[1:]):
        raise ValueError(
            "a tree must be a string, or a tuple of a question and of (answer, tree) tuples; got "
            f"{tree!r:.80}"
        )
    parts = [_measured(branch) for _, branch in tree[1:]]
    return [leaf for leaves, _ in parts for leaf in leaves], 1 + max(depth for _, depth in parts)


def _height(text: str) -> float:
    """What a leaf needs, with the space around it."""
    return 5 + LINE * text.count("\n")


def _grow(page: Page, tree: Tree, x: float, top: float, width: float) -> tuple[Box, float]:
    """Draw a tree below `top`; return the box of its root, and where it ends."""
    if isinstance(tree, str):
        bottom = top + _height(tree)
        leaf = page.box(x, (top + bottom) / 2, width, bottom - top - GAP, tree, JOINT, SMALL)
        return leaf, bottom
    children = []
    for answer, branch in tree[1:]:
        child, top = _grow(page, branch, x + width + ANSWER, top, width)
        page.label(child.left - ANSWER / 2 + 0.6, child.y - 0.5, answer, SMALL, va="bottom")
        children.append(child)
    y = (children[0].y + children[-1].y) / 2
    root = page.box(x, y, width, _height(tree[0]) - GAP, tree[0], PLAIN, SMALL)
    for child in children:
        corner = root.right + 1.5
        page.path((root.right, y), (corner, y), (corner, child.y), (child.left, child.y))
    return root, top
