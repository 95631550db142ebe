"""Evaluation (评估): recall at k, ranks, MRR and nDCG, of arrays and of a model; plots.

    R@k = share of queries with a right answer among the first k

Read `metrics` first, then `evaluator`. `errors` finds out where a model fails. `inspection` looks
at a collection before any model does, `occlusion` at what a model looks at. `plots` draws.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.evaluation.errors import analyse_errors
    from mmret_tf.evaluation.evaluator import (
        embed_pairs,
        evaluate,
        measure,
        measure_parts,
        pairs_of,
    )
    from mmret_tf.evaluation.inspection import inspect_collection
    from mmret_tf.evaluation.metrics import Ranks, evaluate_folds, evaluate_retrieval, rank_all
    from mmret_tf.evaluation.occlusion import occlusion_map, word_drops
    from mmret_tf.evaluation.plots.error_plots import draw_errors
    from mmret_tf.evaluation.plots.evaluation_plots import (
        draw_curves,
        draw_evaluation,
        draw_recall_at_k,
        draw_similarities,
    )
    from mmret_tf.evaluation.second_stage import SecondStage, choose_weight
    from mmret_tf.evaluation.wording import vocabulary_of

__getattr__, __dir__, __all__ = attach(__name__, __file__, ("plots",))
