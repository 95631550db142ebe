"""Synchronisation (增量同步): a run's gallery follows its collection, at the cost of the change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from mmret_tf._files import claimed_folder, locked_folder
from mmret_tf._machine import cores
from mmret_tf.data.cleaning import MAX_FILE_BYTES
from mmret_tf.data.collection import Collection
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.sources import Source
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking import index
from mmret_tf.ranking.index import Index, load_index
from mmret_tf.ranking.run import Run
from mmret_tf.ranking.storage import embedding_store
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore


@dataclass(frozen=True)
class Changes:
    """What `sync_gallery` did, in numbers of items.

    Attributes:
        added: Their ids are new.
        changed: Their files, captions or attributes are others than before.
        removed: They are gone, or can no longer be used.
        unchanged: The others.
        embedded: Their content is new, so the encoder embedded them.
        quarantined: Entries of the collection that were set aside, as (place, reason).
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    embedded: int
    quarantined: list[tuple[str, str]]


def sync_gallery(
    run: Run,
    collection: Collection,
    encoder_for: Callable[[EmbeddingStore | None, Collection], Encoder],
    verify: bool = False,
    may_remove: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Changes:
    """Bring a run's embeddings and index up to date with a collection. Section 7.2.

    Items are known by their content: one that moved or was touched is not embedded again. Files
    whose path, size and time are those of the gallery are not read. New files are decoded to be
    checked, embedded, and put into the index, whose settings stay. Embeddings and index are
    published by one rename (see `Run.publish`). A call that was killed is completed by the next.

    Args:
        run: Its gallery is replaced. It need not have one yet.
        collection: What the gallery is to hold, loaded with `check=False`.
        encoder_for: Function from the present embedding store (`None` if there is none) and the
            checked collection to the run's model, or to the form of it that made the store.
        verify: Read all files, also those whose size and time are known.
        may_remove: Whether more than half of the items may be removed.
        progress: As for `Run.build_index`.

    Returns:
        What was done.

    Raises:
        ValueError: Most items would be removed, nothing is usable, another process is changing the
            gallery, or its folders hold something else.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> run = Run(tempfile.mkdtemp())
    >>> model.save(run.model)
    >>> sync_gallery(run, pairs.subset([0, 1, 2]), lambda *_: model).added
    3
    >>> changes = sync_gallery(run, pairs.subset([1, 2, 3]), lambda *_: model)
    >>> changes.added, changes.removed, changes.unchanged, changes.embedded
    (1, 1, 2, 1)
    >>> len(mm.Searcher.open(run.folder).search("red"))
    3
    """
    run.settle()
    with (
        claimed_folder(run.embeddings, embedding_store.FORMAT),
        claimed_folder(run.index, index.FORMAT),
        claimed_folder(run.parts, embedding_store.FORMAT),
        locked_folder(run.unpublished),
    ):
        known = EmbeddingStore.open(run.embeddings) if run.embeddings.exists() else None
        new, is_read = _new_rows(known, collection, verify)
        if not collection.is_checked:
            collection = collection.checked(new)
        encoder = encoder_for(known, collection)
        if known is not None and not may_remove:
            _check_removal(known, collection)
        dtype = "float32" if known is None else known.made_by["dtype"]
        made_by = {name: getattr(encoder, name) for name in embedding_store.ENCODED_BY}
        made_by["dtype"] = dtype
        base = known if known is not None and known.made_by == made_by else None
        base_index = _index_of(run, base)
        if base_index is not None and not is_read and collection.records() == base.items:
            return _changes(known, base, base, collection)
        target = run.unpublished / "embeddings"
        made = _opened(target, made_by) or base  # a killed call may have embedded everything
        store = EmbeddingStore.export(encoder, collection, target, dtype, made)
        if base_index is None:
            base_index = run.index_of(store, progress=progress)
        else:
            _update(base_index, base, store)
        base_index.save(run.unpublished / "index")
        if run.reranker.is_file():
            run.export_parts(collection, run.unpublished / "parts")
        changes = _changes(known, base, store, collection)
        run.publish()
    return changes


def _new_rows(
    known: EmbeddingStore | None, collection: Collection, verify: bool
) -> tuple[list[int], bool]:
    """The rows with a file whose content the store has not, and whether a file had to be read."""
    stamps: dict[str, tuple[str, tuple]] = {}
    contents = set()
    for item, files in zip(known.items, known.files, strict=True) if known else ():
        for name, entries in files.items():
            for path, (identity, *stamp) in zip(item["sources"][name], entries, strict=True):
                stamps[path] = identity, tuple(stamp)
                contents.add(identity)
    unread = []
    for name, of_items in collection.sources.items():
        for row, sources in enumerate(of_items) if get_modality(name).is_file else ():
            for source in sources:
                identity, stamp = stamps.get(source.record, (None, None))
                if identity and not verify and source.stamp() == stamp:
                    source.remember(identity, stamp)
                else:
                    unread.append((row, source))

    def is_new(each: tuple[int, Source]) -> bool:
        try:
            return each[1].size() > MAX_FILE_BYTES or each[1].identity not in contents
        except (OSError, ValueError):  # the check says why it cannot be read
            return True

    with ThreadPoolExecutor(cores()) as pool:
        found = list(pool.map(is_new, unread))
    return sorted({row for row, _ in compress(unread, found)}), bool(unread)


def _check_removal(known: EmbeddingStore, collection: Collection) -> None:
    """Refuse to remove more than half of the items: perhaps a disk is missing."""
    n_gone = len(set(known.ids) - set(collection.ids))
    if 2 * n_gone > len(known):
        some = "; ".join(": ".join(each) for each in collection.quarantined[:3])
        raise ValueError(
            f"{n_gone} of the {len(known)} items of {known.directory} would be removed, because "
            "the collection lacks them: is a disk missing? If this is right, allow it "
            f"(`mmret sync --yes`){some and f'. Set aside: {some}'}"
        )


def _opened(directory: Path, made_by: dict) -> EmbeddingStore | None:
    """A store, if it is whole and made by this encoder."""
    try:
        store = EmbeddingStore.open(directory)
    except ValueError:
        return None
    return store if store.made_by == made_by else None


def _index_of(run: Run, store: EmbeddingStore | None) -> Index | None:
    """The run's index, if it holds the items of the store."""
    if store is None:
        return None
    try:
        found = load_index(run.index)
    except ValueError:
        return None
    return found if set(found.ids) == set(store.ids) else None


def _update(changed: Index, old: EmbeddingStore, new: EmbeddingStore) -> None:
    """Change an index of the old items into one of the new."""
    before, after = _described(old), _described(new)
    rows = [row for row, key in enumerate(new.ids) if before.get(key) != after[key]]
    if rows:
        attributes = [new.items[row]["attributes"] for row in rows]
        changed.upsert([new.ids[row] for row in rows], new.embeddings[rows], attributes)
    if gone := [key for key in old.ids if key not in after]:
        changed.delete(gone)


def _described(store: EmbeddingStore) -> dict[str, tuple]:
    """Content and record of each item, by id."""
    contents = zip(store.contents, store.items, strict=True)
    return {item["id"]: (content, item) for content, item in contents}


def _changes(
    known: EmbeddingStore | None,
    base: EmbeddingStore | None,
    store: EmbeddingStore,
    collection: Collection,
) -> Changes:
    """Compare the store with what was known, and with the `base` whose embeddings were used."""
    before, after = {} if known is None else _described(known), _described(store)
    contents = set() if base is None else set(base.contents)
    n_same = sum(before.get(key) == each for key, each in after.items())
    n_kept = len(before.keys() & after.keys())
    return Changes(
        added=len(after) - n_kept,
        changed=n_kept - n_same,
        removed=len(before) - n_kept,
        unchanged=n_same,
        embedded=sum(content not in contents for content in store.contents),
        quarantined=collection.quarantined,
    )
