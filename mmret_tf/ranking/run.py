"""A run (训练运行): the folder that `mmret train` fills, and the one place that knows its files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmret_tf._files import awaited_folder
from mmret_tf.data.collection import Collection
from mmret_tf.fusion.fused_encoder import load_fused_encoder
from mmret_tf.models.dual_encoder import load_as
from mmret_tf.models.encoder import Encoder, MultiEncoder
from mmret_tf.ranking.index import Index, build_index, load_index
from mmret_tf.ranking.indexes.scann_engine import EXACT_BELOW, TUNED_QUERIES
from mmret_tf.ranking.reranker import Reranker, load_reranker
from mmret_tf.ranking.searcher import Searcher
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.ranking.storage.parts import StoredParts

# The folders of a gallery, which are replaced together.
GALLERY = ("embeddings", "index", "parts")


class Run:
    """The folder of a run. Its files need not exist yet.

    Args:
        folder: The folder.

    Attributes:
        model, fusion, reranker, config, report, history, evaluation, compression, gallery: Paths of
            files.
        compressed, features, plots, logs, backup: Paths of folders.
        unpublished, published: The gallery that `sync_gallery` makes, see `publish`.

    >>> Run("runs/demo").model.as_posix()
    'runs/demo/model.keras'
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.model = self.folder / "model.keras"
        self.fusion = self.folder / "fusion.keras"  # optional: for queries of several modalities
        self.reranker = self.folder / "reranker.keras"  # optional: the second stage
        self.config = self.folder / "config.json"
        self.report = self.folder / "report.json"
        self.history = self.folder / "history.csv"
        self.evaluation = self.folder / "evaluation.json"
        self.compression = self.folder / "compression.json"
        self.gallery = self.folder / "gallery.png"
        self.compressed = self.folder / "compressed"
        self.features = self.folder / "features"
        self.plots = self.folder / "plots"
        self.logs = self.folder / "logs"
        self.backup = self.folder / "backup"
        self.published = self.folder / "synced"
        self.unpublished = self.folder / "synced.partial"

    @property
    def embeddings(self) -> Path:
        """Folder of the embedding store."""
        return self._part("embeddings")

    @property
    def index(self) -> Path:
        """Folder of the index."""
        return self._part("index")

    @property
    def parts(self) -> Path:
        """Folder of the gallery's regions and words, for the re-ranker."""
        return self._part("parts")

    def _part(self, name: str) -> Path:
        """A part of the gallery: where `publish` put it, until it is in its place."""
        published = self.published / name
        return published if published.exists() else self.folder / name

    def publish(self) -> None:
        """Put the gallery in `unpublished` in place of the present one.

        One rename publishes both: a kill leaves the old gallery or the new one. Whoever opens the
        run at that moment is waited for.
        """
        with awaited_folder(self.folder, exclusive=True):
            self.unpublished.rename(self.published)
        self.settle()

    def settle(self) -> None:
        """Move a published gallery to its place, also what a kill left of that. Until a part is
        there, it is read where it was published."""
        if not self.published.exists():
            return
        with awaited_folder(self.folder, exclusive=True):
            for name in GALLERY:
                if (self.published / name).exists():
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                    (self.published / name).rename(self.folder / name)
            shutil.rmtree(self.published, ignore_errors=True)  # another process may have settled

    def gallery_stamp(self) -> tuple:
        """What differs after another gallery took the place of the present one. Costs two looks at
        the disk."""
        stamp = []
        for part in (self.embeddings, self.index):
            try:
                about = (part / "manifest.json").stat()
                stamp.append((about.st_ino, about.st_mtime_ns, about.st_size))
            except OSError:  # it is not there, or is being replaced
                stamp.append(None)
        return tuple(stamp)

    def load_model(self) -> MultiEncoder:
        """The run's encoder; ValueError if there is none, or it is another version's.

        It is not compiled: for inference, the optimizer would double the time of loading. To train
        it further, use `mmret_tf.load_model`.
        """
        if not self.folder.is_dir():
            raise ValueError(f"no run at {self.folder}: expected a folder that `mmret train` made")
        return load_as(MultiEncoder, self.model, compile=False)

    def read_report(self) -> dict[str, Any]:
        """The report of the training; `{}` if there is none, ValueError if it is damaged."""
        if not self.report.is_file():
            return {}
        try:
            report = json.loads(self.report.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.report} is damaged: {error}") from None
        if not isinstance(report, dict):
            raise ValueError(f"{self.report} is damaged: it must hold a JSON object")
        return report

    def open_searcher(
        self,
        encoder: Encoder | None = None,
        reranker: Reranker | None = None,
        rerank_k: int = 50,
    ) -> Searcher:
        """A searcher over the run's index.

        Args:
            encoder: Another form of the run's encoder; by default the run's `FusedEncoder`, if it
                has one, or its model.
            reranker, rerank_k: A second stage, see `Searcher` and `load_reranker`.

        Raises:
            ValueError: A part is missing or damaged, or the embeddings are another model's.
        """
        if encoder is None and self.fusion.is_file():
            encoder = load_fused_encoder(self.fusion)
        if encoder is None:
            encoder = self.load_model() if reranker is None else reranker.encoder
        with awaited_folder(self.folder, exclusive=False):  # both parts are of one gallery
            store = EmbeddingStore.open(self.embeddings)
            if store.fingerprint != encoder.fingerprint:
                raise ValueError(
                    f"{self.embeddings} was made by another model than the one in {self.folder}: "
                    "run `mmret embed` again"
                )
            parts = None
            if reranker is not None:
                parts = StoredParts(EmbeddingStore.open(self.parts), store.items, reranker)
            index = load_index(self.index)
            return Searcher(encoder, index, store.items, reranker, rerank_k, parts)

    def load_reranker(self) -> Reranker:
        """The run's second stage; ValueError if there is none."""
        if not self.reranker.is_file():
            raise ValueError(f"{self.folder} has no re-ranker: train with `mmret train --reranker`")
        return load_reranker(self.reranker)

    def export_parts(self, collection: Collection, directory: Path) -> None:
        """Read the regions or words of a gallery for the re-ranker; those that are known are kept.

        Args:
            collection: The gallery.
            directory: Folder to write.
        """
        known = EmbeddingStore.open(self.parts) if self.parts.exists() else None
        StoredParts.export(self.load_reranker(), collection, directory, known)

    def build_index(
        self,
        recall_target: float = 0.95,
        progress: Callable[[str], None] = lambda line: None,
        build: Callable[..., Index] | None = None,
    ) -> Index:
        """Index the embeddings, and save the index.

        A large gallery is tuned on its captions, or on its own rows if the model reads no text.

        Args:
            recall_target: Share of the true neighbours that searches find.
            progress: Is told what is being done, a line each.
            build: Makes the index, from the arguments of `mmret_tf.build_index`, the default.

        Raises:
            ValueError: There are no embeddings, or the target is not a share.
        """
        store = EmbeddingStore.open(self.embeddings)
        index = self.index_of(store, recall_target, progress, build)
        index.save(self.index)
        return index

    def index_of(
        self,
        store: EmbeddingStore,
        recall_target: float = 0.95,
        progress: Callable[[str], None] = lambda line: None,
        build: Callable[..., Index] | None = None,
    ) -> Index:
        """An index over some embeddings of the run's model; see `build_index`.

        Args:
            store: The embeddings.
            recall_target, progress, build: As for `build_index`.
        """
        queries = None
        captions = [caption for item in store.items for caption in item["captions"]]
        if captions and len(store) >= EXACT_BELOW:  # smaller galleries need no tuning
            model, step = self.load_model(), -(-len(captions) // TUNED_QUERIES)
            if "text" in model.modalities:
                queries = model.encode("text", captions[::step])
        return (build or build_index)(
            store.embeddings,
            store.ids,
            recall_target,
            queries,
            attributes=[item["attributes"] for item in store.items],
            progress=progress,
        )
