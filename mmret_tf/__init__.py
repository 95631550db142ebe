"""Multimodal (image-text) retrieval in TensorFlow and Keras, from pictures with captions to ranked
results (多模态检索).

One folder for each step of the document: `data`, `models`, `fusion`, `similarity`, `ranking`; then
`evaluation`, `training`, `scale` and `serving`. Names are imported on first use.
"""

import importlib
import os
import sys
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from mmret_tf._lazy import attach as _attach
from mmret_tf.doctor import keras_problem as _keras_problem

if TYPE_CHECKING:
    from mmret_tf.data.collection import Collection
    from mmret_tf.data.decoders.text import TextPreprocessor
    from mmret_tf.data.loading import load, load_items, load_pairs
    from mmret_tf.evaluation.evaluator import evaluate
    from mmret_tf.evaluation.metrics import evaluate_retrieval
    from mmret_tf.fusion.fused_encoder import FusedEncoder
    from mmret_tf.models.document_model import MultimodalRetrievalModel
    from mmret_tf.models.dual_encoder import DualEncoder, load_model
    from mmret_tf.models.encoder import MultiEncoder
    from mmret_tf.models.towers.audio import audio_tower
    from mmret_tf.models.towers.image import image_tower
    from mmret_tf.models.towers.text import text_tower
    from mmret_tf.models.towers.video import video_tower
    from mmret_tf.ranking.index import build_index, load_index
    from mmret_tf.ranking.indexes.brute_force import BruteForceIndex
    from mmret_tf.ranking.indexes.scann_index import ScannIndex
    from mmret_tf.ranking.reranker import Reranker
    from mmret_tf.ranking.searcher import Searcher
    from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
    from mmret_tf.serving.client import ServingClient
    from mmret_tf.serving.export import export_saved_model
    from mmret_tf.similarity import losses
    from mmret_tf.training.config import TrainConfig
    from mmret_tf.training.trainer import train

__version__ = _version("mmret_tf")

_FOLDERS = (
    *("data", "models", "fusion", "similarity", "ranking"),
    *("evaluation", "training", "scale", "serving"),
)

# Their classes are registered with Keras under names that saved models hold.
_REGISTERED = (
    *("models.dual_encoder", "models.document_model", "fusion.fused_encoder", "fusion.late"),
    *("fusion.sequences", "fusion.scores", "fusion.imputers", "fusion.missing"),
    "ranking.reranker",
)

# TensorFlow reads these when it is loaded. Without AVX-512 it leaves oneDNN off, and ResNet50
# trains at half the speed.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
if not os.environ.get("MMRET_DEBUG"):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its own log lines are for debugging

_attached, __dir__, __all__ = _attach(__name__, __file__, _FOLDERS)


def __getattr__(name: str):
    if name in __all__ and (problem := _keras_problem()):
        raise ImportError(problem)
    return _attached(name)


if "keras" in sys.modules and not _keras_problem():
    # `keras.saving.load_model` then finds the classes of a saved model.
    for _module in _REGISTERED:
        importlib.import_module(f"{__name__}.{_module}")
