"""Plots (图表): curves, answers and errors as PNG files; diagrams and maps as figures."""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.evaluation.plots.error_plots import draw_errors
    from mmret_tf.evaluation.plots.evaluation_plots import (
        draw_curves,
        draw_evaluation,
        draw_recall_at_k,
        draw_similarities,
    )
    from mmret_tf.evaluation.plots.figures import shown

__getattr__, __dir__, __all__ = attach(__name__, __file__)
