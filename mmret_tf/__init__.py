"""Multimodal (image-text) retrieval in TensorFlow and Keras, from pictures with captions to ranked
results (多模态检索)."""

import os
import sys
from importlib.metadata import version as _version
from pathlib import Path as _Path

from mmret_tf.doctor import keras_problem as _keras_problem

__version__ = _version("mmret_tf")

# Without AVX-512, TensorFlow leaves oneDNN off, and a ResNet50 trains at half the speed. It is read
# when TensorFlow is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# The `mmret` command imports what it needs itself: `--help` is quick that way, and `mmret doctor`
# can look at an environment in which the rest does not import.
if _Path(sys.argv[0]).name not in ("mmret", "mmret.exe"):
    if _problem := _keras_problem():
        raise ImportError(_problem)
    from mmret_tf import losses
    from mmret_tf.brute_force import BruteForceIndex
    from mmret_tf.callbacks import RetrievalMetrics
    from mmret_tf.compression import CompressedImageTower, compress_image_tower
    from mmret_tf.config import TrainConfig
    from mmret_tf.datasets import PairDataset, load_pairs
    from mmret_tf.distillation import distill_image_tower
    from mmret_tf.dual_encoder import DualEncoder, load_model
    from mmret_tf.embeddings import EmbeddingStore
    from mmret_tf.evaluation import evaluate_folds, evaluate_retrieval, rank_all
    from mmret_tf.fused_encoder import FusedEncoder, item_examples, load_fused_encoder
    from mmret_tf.fusion import Concatenate, EarlyFusion, GatedFusion, HybridFusion, WeightedSum
    from mmret_tf.index import ScannIndex, build_index, load_index
    from mmret_tf.items import ItemDataset, caption_items, load_items
    from mmret_tf.measuring import evaluate
    from mmret_tf.missing import (
        ConstantImputer,
        EnsembleFusion,
        MeanImputer,
        ModalityDropout,
        ModalityPredictor,
        NearestImputer,
    )
    from mmret_tf.multimodal import MultimodalRetrievalModel, item_labels, rank_items, top_k_images
    from mmret_tf.preprocessing import TextPreprocessor, decode_image, load_image
    from mmret_tf.scann_engine import ScannConfig
    from mmret_tf.score_fusion import ReciprocalRankFusion, WeightedScores
    from mmret_tf.searcher import Searcher, SearchResult, SearchResults
    from mmret_tf.serving import ServingClient, export_saved_model
    from mmret_tf.towers import image_tower, text_tower
    from mmret_tf.training import train

    __all__ = [
        "BruteForceIndex",
        "CompressedImageTower",
        "Concatenate",
        "ConstantImputer",
        "DualEncoder",
        "EarlyFusion",
        "EmbeddingStore",
        "EnsembleFusion",
        "FusedEncoder",
        "GatedFusion",
        "HybridFusion",
        "ItemDataset",
        "MeanImputer",
        "ModalityDropout",
        "ModalityPredictor",
        "MultimodalRetrievalModel",
        "NearestImputer",
        "PairDataset",
        "ReciprocalRankFusion",
        "RetrievalMetrics",
        "ScannConfig",
        "ScannIndex",
        "SearchResult",
        "SearchResults",
        "Searcher",
        "ServingClient",
        "TextPreprocessor",
        "TrainConfig",
        "WeightedScores",
        "WeightedSum",
        "build_index",
        "caption_items",
        "compress_image_tower",
        "decode_image",
        "distill_image_tower",
        "evaluate",
        "evaluate_folds",
        "evaluate_retrieval",
        "export_saved_model",
        "image_tower",
        "item_examples",
        "item_labels",
        "load_fused_encoder",
        "load_image",
        "load_index",
        "load_items",
        "load_model",
        "load_pairs",
        "losses",
        "rank_all",
        "rank_items",
        "text_tower",
        "top_k_images",
        "train",
    ]
