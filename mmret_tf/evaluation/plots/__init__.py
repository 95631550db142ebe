"""Plots (图表): what was measured, and how a system works.

Plots of an evaluation are written to PNG files; `shown` makes them small enough for a notebook. All
others are figures, which Jupyter shows as they are. matplotlib comes with the extra `notebooks`.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.evaluation.plots.cells import gru_cell, lstm_cell, unrolled_lstm
    from mmret_tf.evaluation.plots.diagrams import (
        decision_tree,
        fusions,
        query_to_rank,
        two_towers,
    )
    from mmret_tf.evaluation.plots.error_plots import draw_errors
    from mmret_tf.evaluation.plots.evaluation_plots import (
        draw_curves,
        draw_evaluation,
        draw_recall_at_k,
        draw_similarities,
    )
    from mmret_tf.evaluation.plots.figures import shown
    from mmret_tf.evaluation.plots.maps import draw_embedding_map, principal_components
    from mmret_tf.evaluation.plots.occlusion_plots import draw_occlusion, draw_word_drops

__getattr__, __dir__, __all__ = attach(__name__, __file__)
