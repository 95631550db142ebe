"""Step 3.1(5), ranking (检索排序): indexes, the embedding store, the searcher (8.3).

    top k of similarity(query, item) over all items

Read `indexes/brute_force` first, then `searcher`.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.ranking.filters import check_condition
    from mmret_tf.ranking.gallery import draw_gallery, draw_items
    from mmret_tf.ranking.index import Index, build_index, load_index
    from mmret_tf.ranking.indexes.brute_force import BruteForceIndex
    from mmret_tf.ranking.indexes.scann_engine import ScannConfig
    from mmret_tf.ranking.indexes.scann_index import ScannIndex
    from mmret_tf.ranking.query import parse_terms
    from mmret_tf.ranking.reranker import Reranker, load_reranker
    from mmret_tf.ranking.results import SearchResult, SearchResults
    from mmret_tf.ranking.run import Run
    from mmret_tf.ranking.searcher import Searcher
    from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
    from mmret_tf.ranking.sync import sync_gallery

__getattr__, __dir__, __all__ = attach(__name__, __file__)
