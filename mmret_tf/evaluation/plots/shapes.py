"""What diagrams are made of (图形元素): boxes, arrows and labels on a page of 100 units in width.

Places are the centres of shapes; y grows downwards. A label has an English line and a Chinese one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmret_tf.evaluation.plots.figures import font_families, new_figure

INCHES = 9  # width of a page
UNIT = INCHES / 100

SIZE, SMALL = 10, 8.5  # of the letters, in points

# Fills by what a box holds. They differ in lightness as well.
IMAGE, TEXT, JOINT, PLAIN = "#cfe3f7", "#fde2b8", "#d3ecc8", "#f2f2f2"
EDGE = "#444444"


class Box(NamedTuple):
    """A place on the page, for arrows to start and to end at."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    def towards(self, other: "Box") -> tuple[float, float]:
        """The middle of the side that faces another box: left or right if there is a gap."""
        if self.right < other.left or other.right < self.left:
            return self.right if other.x > self.x else self.left, self.y
        return self.x, self.bottom if other.y > self.y else self.top


class Page:
    """A figure to draw shapes on.

    Args:
        height: In units; 100 of them are the width.

    Attributes:
        figure: The matplotlib figure.

    >>> page = Page(height=20)
    >>> one = page.box(20, 10, 20, 10, "image tower\\n图像塔")
    >>> other = page.box(80, 10, 20, 10, "text tower\\n文本塔")
    >>> page.arrow(one, other)
    >>> one.towards(other)
    (30.0, 10)
    """

    def __init__(self, height: float):
        self.figure = new_figure(INCHES, height * UNIT)
        self.figure.set_layout_engine("none")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 100), ylim=(height, 0))
        self.axes.set_axis_off()
        self.families = font_families()

    def label(self, x: float, y: float, text: str, size: float = SIZE, **style: Any) -> None:
        """Write lines of text around a place; `style` is matplotlib's."""
        plain = {"ha": "center", "va": "center", "linespacing": 1.25, "parse_math": False}
        font = {"fontsize": size, "fontfamily": self.families}
        self.axes.text(x, y, text, **plain | font | style)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        fill: str = PLAIN,
        size: float = SIZE,
        line: str = "-",
    ) -> Box:
        """Draw a box with a text in its middle."""
        from matplotlib.patches import FancyBboxPatch

        corner = (x - width / 2, y - height / 2)
        style = {"facecolor": fill, "edgecolor": EDGE, "linestyle": line, "linewidth": 1}
        rounded = "round,pad=0,rounding_size=0.8"
        self.axes.add_patch(FancyBboxPatch(corner, width, height, rounded, **style))
        if text:
            self.label(x, y, text, size)
        return Box(x, y, width, height)

    def frame(self, boxes: Sequence[Box], text: str, space: float = 2) -> Box:
        """Draw a dashed frame around boxes, with a line of text above them."""
        title = 3.2
        left = min(box.left for box in boxes) - space
        right = max(box.right for box in boxes) + space
        top = min(box.top for box in boxes) - space - title
        bottom = max(box.bottom for box in boxes) + space
        self.label((left + right) / 2, top + 0.8 + title / 2, text)
        middle = ((left + right) / 2, (top + bottom) / 2)
        return self.box(*middle, right - left, bottom - top, fill="none", line="--")

    def arrow(
        self,
        start: Box | tuple[float, float],
        end: Box | tuple[float, float],
        line: str = "-",
    ) -> None:
        """Draw an arrow between boxes, from side to side, or between points."""
        one = start if isinstance(start, Box) else Box(*start, 0, 0)
        other = end if isinstance(end, Box) else Box(*end, 0, 0)
        style = {"arrowstyle": "-|>", "color": EDGE, "linestyle": line, "mutation_scale": 9}
        ends = {"xy": other.towards(one), "xytext": one.towards(other)}
        self.axes.annotate("", **ends, arrowprops=style | {"shrinkA": 0, "shrinkB": 1})

    def chain(self, *boxes: Box) -> None:
        """Draw an arrow from each box to the next."""
        for one, other in zip(boxes, boxes[1:], strict=False):
            self.arrow(one, other)

    def path(self, *points: tuple[float, float], line: str = "-") -> None:
        """Draw a line with corners that ends in an arrow."""
        xs, ys = zip(*points[:-1], strict=True)
        self.axes.plot(xs, ys, line, color=EDGE, linewidth=1, solid_capstyle="butt")
        self.arrow(points[-2], points[-1], line)
