"""How ScannIndex compares with other engines of vector search, over the same vectors and queries.

    python tests/benchmarks/search.py --sizes 100000 1000000 --dim 256 --run runs/flickr8k \
        --data flickr8k --output search.json

Needs Linux and, for the other engines, `pip install faiss-cpu hnswlib usearch`; missing ones are
left out. Prints a table for each data set: recall at 10 on queries that no index was tuned on,
speed of batches and of single queries, time and memory of the build. The data sets are clustered
unit vectors, and the images and captions of a run. `ScannIndex` tunes itself on other queries of
the same kind. All others are swept and get the fastest setting that reaches the recall on the very
queries they are timed with, which is the best that could be set by hand. The last part measures how
reliably `ScannIndex` reaches its target, on small clustered sets with many seeds.
"""

import argparse
import ctypes
import dataclasses
import gc
import hashlib
import importlib.util
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
early.add_argument("--threads", type=int, default=2, help="threads of every engine")
THREADS = early.parse_known_args()[0].threads
# BLAS and OpenMP read these variables when they are loaded. The affinity limits engines that have
# no such setting.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])

import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import mmret_tf as mm  # noqa: E402
from mmret_tf._machine import quiet_stderr  # noqa: E402

K = 10
TARGETS = (0.9, 0.95, 0.99)
TIE = 1e-6  # precision of a float32 score
QUERIES, SINGLE, ROUNDS = 2000, 500, 5
BLOCK_ROWS = 2**14
# Swept settings: share of leaves to search, candidates to score again, effort in a graph.
SHARES = (0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.4)
REORDER = (20, 30, 40, 50, 70, 100, 150, 200, 300)
CODES = ("x4fs", "x4fsr")
EFFORT = (10, 12, 16, 20, 24, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512, 800, 1600)

# Statistics of ScannIndex that do not fit into a table.
NOTES = re.compile("recall|measured|n_|k$|queries_per|single_query")

console = Console(width=160)


@dataclasses.dataclass
class Data:
    """Unit vectors `[n, dim]`, queries to tune on, and others to test on."""

    name: str
    vectors: np.ndarray
    tuning: np.ndarray
    unseen: np.ndarray

    def __post_init__(self):
        best = np.full((len(self.unseen), K), -np.inf, np.float32)
        for start in range(0, len(self.vectors), BLOCK_ROWS):
            scores = self.unseen @ self.vectors[start : start + BLOCK_ROWS].T
            best = np.partition(np.concatenate([best, scores], axis=1), -K, axis=1)[:, -K:]
        self.enough = best.min(axis=1, keepdims=True) - TIE

    def recall(self, found: tuple[np.ndarray, np.ndarray]) -> float:
        """Share of the 10 best that were found; rows that score as high as the 10th count too."""
        rows, scores = found
        rows = np.sort(np.where(np.isnan(scores), -1, np.asarray(rows).astype(np.int64)), axis=1)
        right = np.einsum("qd,qkd->qk", self.unseen, self.vectors[rows]) >= self.enough
        right[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        return float((right & (rows >= 0)).sum() / rows.size)


@dataclasses.dataclass
class Point:
    """An index and a setting to search it with.

    `batch(queries [n, dim], **setting)` returns rows and scores `[n, 10]`; `single(query [dim],
    **setting)` may return any form. A setting joins one of `inner` with one of `outer`; both start
    with the fastest.
    """

    batch: Callable
    inner: Sequence[dict] = ({},)
    outer: Sequence[dict] = ({},)
    single: Callable | None = None
    index: Any = None
    engine: str = ""
    build: dict = dataclasses.field(default_factory=dict)  # how the index was built
    costs: dict = dataclasses.field(default_factory=dict)
    setting: dict = dataclasses.field(default_factory=dict)
    recall: float = 1.0
    seconds: float = 0.0

    def __post_init__(self):
        self.single = self.single or self.batch

    def timed(self, queries: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        started = time.perf_counter()
        found = self.batch(queries, **self.setting)
        return time.perf_counter() - started, found


def build_mmret(data: Data, recall_target: float) -> Point:
    ids = range(len(data.vectors))
    index = mm.ScannIndex.build(
        data.vectors, ids, recall_target=recall_target, queries=data.tuning, k=K
    )
    return Point(lambda queries: index.search(queries, K), index=index)


def build_brute_force(data: Data) -> Point:
    index = mm.BruteForceIndex.build(data.vectors, range(len(data.vectors)))
    return Point(lambda queries: index.search(queries, K))


def build_numpy(data: Data) -> Point:
    """Scores without choosing the best: the lower bound of exact search."""
    vectors = np.array(data.vectors)
    scores = np.empty((max(1, 2**26 // len(vectors)), len(vectors)), np.float32)

    def batch(queries):
        for start in range(0, len(queries), len(scores)):
            block = queries[start : start + len(scores)]
            np.matmul(block, vectors.T, out=scores[: len(block)])

    return Point(batch, single=lambda query: vectors @ query)


def build_scann(data: Data, leaves: int, **tree: Any) -> Point:
    from scann.scann_ops.py import scann_ops_pybind as scann

    builder = scann.builder(data.vectors, K, "dot_product").tree(leaves, K, **tree)
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
    with quiet_stderr():
        index = builder.set_n_training_threads(THREADS).build()
    index.set_num_threads(THREADS)
    return Point(
        lambda queries, search, reorder: index.search_batched_parallel(queries, K, reorder, search),
        *settings_of_tree(leaves),
        single=lambda query, search, reorder: index.search(query, K, reorder, search),
    )


def build_faiss_ivf(data: Data, leaves: int, codes: str) -> Point:
    import faiss

    faiss.omp_set_num_threads(THREADS)
    dim = data.vectors.shape[1]
    kind = f"IVF{leaves},PQ{dim // 2}{codes},RFlat"
    index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(data.vectors)
    index.add(data.vectors)
    tree = faiss.extract_index_ivf(index)

    def batch(queries, search, reorder):
        tree.nprobe, index.k_factor = search, reorder / K
        return index.search(np.atleast_2d(queries), K)[::-1]

    return Point(batch, *settings_of_tree(leaves))


def build_faiss_hnsw(data: Data) -> Point:
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexHNSWFlat(data.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(data.vectors)

    def batch(queries, effort):
        index.hnsw.efSearch = effort
        return index.search(np.atleast_2d(queries), K)[::-1]

    return Point(batch, settings("effort", EFFORT))


def build_hnswlib(data: Data) -> Point:
    import hnswlib

    n, dim = data.vectors.shape
    index = hnswlib.Index("ip", dim)
    index.init_index(n, M=16, ef_construction=200)
    index.add_items(data.vectors, np.arange(n), num_threads=THREADS)

    def batch(queries, effort):
        index.set_ef(effort)
        return index.knn_query(queries, K, num_threads=THREADS)

    return Point(batch, settings("effort", EFFORT))


def build_usearch(data: Data) -> Point:
    from usearch.index import Index

    n, dim = data.vectors.shape
    # float32, as everywhere here.
    index = Index(ndim=dim, metric="ip", dtype="f32", connectivity=16, expansion_add=128)
    index.add(np.arange(n, dtype=np.uint64), data.vectors, threads=THREADS)

    def batch(queries, effort):
        index.expansion_search = effort
        matches = index.search(queries, K, threads=THREADS)
        return matches.keys, matches.distances

    return Point(batch, settings("effort", EFFORT))


def settings(name: str, values: Sequence[int]) -> list[dict]:
    return [{name: value} for value in values]


def settings_of_tree(leaves: int) -> tuple[list[dict], list[dict]]:
    searched = sorted({max(1, round(share * leaves)) for share in SHARES})
    return settings("search", searched), settings("reorder", REORDER)


EXACT = {"BruteForceIndex": build_brute_force, "numpy": build_numpy}
GRAPHS = {"faiss_hnsw": build_faiss_hnsw, "hnswlib": build_hnswlib, "usearch": build_usearch}
TREES = {"ScannIndex": build_mmret, "scann": build_scann, "faiss_ivf": build_faiss_ivf}
ENGINES = EXACT | TREES | GRAPHS


def variants(name: str, n: int) -> list[dict]:
    """The ways to build an engine for n vectors; each is swept."""
    if name == "ScannIndex":
        return settings("recall_target", TARGETS[:1])
    if name not in ("scann", "faiss_ivf"):
        return [{}]
    found = []
    for leaves in (round(n**0.5), round(2 * n**0.5)):
        if name == "scann":
            # The defaults; a second leaf for each vector; spherical leaves, learnt from more
            # vectors, as in `ScannIndex`.
            sample = {"spherical": True, "training_sample_size": min(250 * leaves, n)}
            others = [{}, {"soar_lambda": 1.5}, sample]
        else:  # codes of the vectors, or of their differences from the centres of leaves
            others = settings("codes", CODES)
        found += [{"leaves": leaves} | other for other in others]
    return found


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def clustered(n: int, dim: int, seed: int, folder: str) -> Data:
    """About 100 points around each centre, as far from it as the centre is from the origin."""
    generator = np.random.default_rng(seed)
    centres = unit(generator.standard_normal((n // 100, dim), np.float32))

    def draw(count: int) -> np.ndarray:
        around = centres[generator.integers(len(centres), size=count)]
        return unit(around + generator.standard_normal((count, dim), np.float32) / dim**0.5)

    path = Path(folder) / "vectors.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.float32, (n, dim))
    for start in range(0, n, BLOCK_ROWS):
        stored[start : start + BLOCK_ROWS] = draw(min(BLOCK_ROWS, n - start))
    del stored
    vectors = np.load(path, mmap_mode="r")
    path.unlink()  # the file stays until its last reader closes it
    return Data(f"{n:,} x {dim}, clustered", vectors, draw(QUERIES), draw(QUERIES))


def of_run(run: str, data: str, split: str, seed: int) -> Iterator[Data]:
    """The captions of a collection as queries for its images, and the other way round."""
    model, pairs = mm.load_model(f"{run}/model.keras"), mm.load_pairs(data, split)
    captions, fingerprint = pairs.all_captions(), model.fingerprint
    key = json.dumps([fingerprint, pairs.ids, captions])
    key = hashlib.sha256(key.encode()).hexdigest()[:16]

    def cached(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = Path(run) / f"search-{name}-{key}.npy"
        if not path.exists():
            np.save(path.with_suffix(".partial.npy"), unit(make()).astype(np.float32))
            os.replace(path.with_suffix(".partial.npy"), path)  # whole or not at all
        return np.load(path, mmap_mode="r")

    def embedded_images() -> np.ndarray:
        store = mm.EmbeddingStore.open(f"{run}/embeddings")
        row_of = {item: row for row, item in enumerate(store.ids)}
        if store.fingerprint != fingerprint or not row_of.keys() >= set(pairs.ids):
            return model.encode_images(pairs.image_paths)
        return store.embeddings[[row_of[item] for item in pairs.ids]]

    def data_set(name: str, gallery: np.ndarray, others: np.ndarray) -> Data:
        order = np.random.default_rng(seed).permutation(len(others))
        half = min(QUERIES, len(order) // 2)
        title = f"{Path(run).name}, {name}, {len(gallery):,} x {gallery.shape[1]}"
        return Data(title, gallery, others[order[:half]], others[order[half : 2 * half]])

    images = cached("images", embedded_images)
    texts = cached("captions", lambda: model.encode_texts(captions))
    yield data_set("captions to images", images, texts)
    yield data_set("images to captions", texts, images)


def memory() -> dict[str, int]:
    """MiB of this process: VmRSS (resident), VmHWM (its peak) and RssAnon (without files)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory counts until it is returned
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if " kB" in line}


def build(name: str, data: Data, variant: dict) -> Point:
    """Build an index and note the cost; its setting is still to be found."""
    before = memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    started = time.perf_counter()
    point = ENGINES[name](data, **variant)
    seconds = time.perf_counter() - started
    after = memory()
    point.engine, point.build = name, variant
    point.costs = {
        "build_seconds": seconds,
        "kept_mib": after["RssAnon"] - before["RssAnon"],
        # The pages of the file are in VmRSS: the exact answers have read all of it.
        "peak_mib": after["VmHWM"] - before["VmRSS"],
    }
    return point


def sweep(built: Point, data: Data) -> list[Point]:
    """All settings that may be the fastest for a target.

    A larger value of either part takes longer, so larger ones are skipped once the highest target
    is reached or a step finds nothing more.
    """
    points, end = [], len(built.inner)
    for outer in built.outer:
        best = -1.0
        for position, inner in enumerate(built.inner[:end]):
            point = dataclasses.replace(built, setting=inner | outer)
            point.seconds, found = point.timed(data.unseen)
            point.recall = data.recall(found)
            points.append(point)
            if point.recall >= max(TARGETS):
                end = position
            if point.recall >= max(TARGETS) or point.recall <= best:
                break
            best = point.recall
    return points


def fastest(points: list[Point], recall: float, queries: np.ndarray) -> Point | None:
    """The fastest setting that reaches a recall, by the median of several rounds."""
    enough = [point for point in points if point.recall >= recall]
    few = sorted(enough, key=lambda point: point.seconds)[:5]
    seconds = [[point.timed(queries)[0] for point in few] for _ in range(ROUNDS)]
    return few[int(np.median(seconds, axis=0).argmin())] if few else None


def measure(points: list[Point], queries: np.ndarray) -> list[dict]:
    """A row of figures for each point; they take turns, so that a slow moment hits them all."""
    batches = np.empty((len(points), ROUNDS))
    singles = np.empty((len(points), ROUNDS, SINGLE // ROUNDS))
    for turn in range(ROUNDS):
        for number, point in enumerate(points):
            point.batch(queries[:50], **point.setting)  # loads its data into the caches
            batches[number, turn] = point.timed(queries)[0]
            for i in range(SINGLE // ROUNDS):
                query = queries[(turn * (SINGLE // ROUNDS) + i) % len(queries)]
                started = time.perf_counter()
                point.single(query, **point.setting)
                singles[number, turn, i] = time.perf_counter() - started
    return [
        {
            "engine": point.engine,
            "recall": point.recall,
            "queries_per_second": len(queries) / float(np.median(batches[number])),
            "single_median_us": 1e6 * float(np.median(singles[number])),
            "single_99th_us": 1e6 * float(np.percentile(singles[number], 99)),
            **point.costs,
            "setting": point.build | point.setting,
        }
        for number, point in enumerate(points)
    ]


def ratio(first: Point, second: Point, queries: np.ndarray) -> float:
    """Speed of the first relative to the second on batches: the median over pairs of runs."""
    pairs = [(first.timed(queries)[0], second.timed(queries)[0]) for _ in range(7)]
    return float(np.median([theirs / own for own, theirs in pairs]))


def compare(data: Data, engines: list[str], graphs_up_to: int) -> dict:
    """Build each engine, choose its setting for each target, measure, and print a table."""
    console.print(f"\n{data.name}", style="bold", highlight=False)
    exact, ours, swept, ratios = [], None, {}, {}
    for name in engines:
        if name in GRAPHS and len(data.vectors) > graphs_up_to:
            print(f"  {name} is left out: graphs are slow to build (--graphs-up-to {graphs_up_to})")
            continue
        for variant in variants(name, len(data.vectors)):
            built = build(name, data, variant)
            print(f"  {name} {variant or ''} built in {built.costs['build_seconds']:.1f} s")
            if name == "ScannIndex":
                ours = built
            elif name in EXACT:
                exact.append(built)
            else:
                swept.setdefault(name, []).extend(sweep(built, data))
    rows = measure(exact, data.unseen)
    for target in TARGETS:
        points, missed = [], []
        if ours:
            if target != TARGETS[0]:
                started = time.perf_counter()
                ours.index.tune(recall_target=target)
                ours.costs["tune_seconds"] = time.perf_counter() - started
            ours.build, ours.recall = dict(ours.index.stats), data.recall(ours.batch(data.unseen))
            points.append(ours)
        for name, candidates in swept.items():
            # Raw ScaNN needs to find no more than our index, which uses the same engine.
            needed = min(target, ours.recall) if ours and name == "scann" else target
            if point := fastest(candidates, needed, data.unseen):
                points.append(point)
            else:
                most = max(each.recall for each in candidates)
                missed.append({"engine": name, "recall": most, "setting": None})
        rows += [{"target": target} | row for row in measure(points, data.unseen) + missed]
        if [point.engine for point in points[:2]] == ["ScannIndex", "scann"]:
            ratios[target] = ratio(*points[:2], data.unseen)
    show(data.name, rows)
    for target, value in ratios.items():
        print(f"  batches of ScannIndex for {target}: {value:.2f} times as fast as scann, swept")
    if len(exact) == 2:
        batch = rows[0]["queries_per_second"] / rows[1]["queries_per_second"]
        single = rows[1]["single_median_us"] / rows[0]["single_median_us"]
        print(f"  BruteForceIndex: {batch:.2f} times as fast as numpy, one query {single:.2f}")
    return {"name": data.name, "rows": rows, "ratios": ratios}


def show(title: str, rows: list[dict]) -> None:
    forms = {"recall": ".4f", "queries_per_second": ",.0f", "single_median_us": ",.0f"}
    forms |= {"single_99th_us": ",.0f", "build_seconds": ",.1f", "kept_mib": ",", "peak_mib": ","}
    headings = [name.replace("_", " ") for name in forms]
    table = Table("engine", "target", *headings, "setting", title=title)
    for row in rows:
        cells = [f"{row[name]:{form}}" if name in row else "-" for name, form in forms.items()]
        setting = {"target": "never reached"} if row["setting"] is None else row["setting"]
        words = [f"{name} {value}" for name, value in setting.items() if not NOTES.match(name)]
        table.add_row(row["engine"], str(row.get("target", "")), *cells, ", ".join(words))
    console.print(table)


def many_seeds(count: int, folder: str) -> dict[float, list[float]]:
    """Recall of `ScannIndex` for each target, on clustered sets of many seeds."""
    recalls = {target: [] for target in TARGETS}
    for seed in range(count):
        data = clustered(20_000, 64, seed, folder)
        built = build_mmret(data, TARGETS[0])
        for target in TARGETS:
            if target != TARGETS[0]:
                built.index.tune(recall_target=target)
            recalls[target].append(data.recall(built.batch(data.unseen)))
    table = Table("target", "lowest recall", "median", "within 0.01 or above", title=data.name)
    for target, found in recalls.items():
        kept = f"{sum(recall >= target - 0.01 for recall in found)} of {count}"
        table.add_row(f"{target}", f"{min(found):.4f}", f"{np.median(found):.4f}", kept)
    console.print(table)
    return recalls


def overhead_of_searcher(run: str) -> dict[str, float]:
    """Milliseconds of `Searcher.search(text=...)` and its parts: encoding, and raw ScaNN."""
    store = mm.EmbeddingStore.open(f"{run}/embeddings")
    model = mm.load_model(f"{run}/model.keras")
    config = mm.ranking.ScannConfig(leaves=round(len(store.ids) ** 0.5))
    index = mm.ScannIndex.build(store.embeddings, store.ids, config=config)
    searcher = mm.Searcher(model, index, store.items)
    data = Data("", np.asarray(index.vectors), None, np.asarray(index.vectors[:K]))
    bare = build_scann(data, config.leaves, spherical=True).single
    search, reorder = (index.stats[name] for name in ("leaves_to_search", "reorder"))
    texts = [caption for item in store.items for caption in item["captions"][:1]][:SINGLE]
    seconds = {"searcher": [], "encoding": [], "scann": []}

    def timed(name: str, call: Callable) -> Any:
        started = time.perf_counter()
        answer = call()
        seconds[name].append(time.perf_counter() - started)
        return answer

    for text in texts:
        timed("searcher", lambda text=text: searcher.search(text=text, k=K))
        vector = timed("encoding", lambda text=text: model.encode_texts([text]))[0]
        timed("scann", lambda vector=vector: bare(vector, search=search, reorder=reorder))
    ms = {name: 1e3 * float(np.median(each)) for name, each in seconds.items()}
    ms["added"] = ms["searcher"] - ms["encoding"] - ms["scann"]
    console.print(
        f"\nOne text among {len(store.ids):,} items: Searcher {ms['searcher']:.2f} ms, encoding "
        f"{ms['encoding']:.2f} ms, raw ScaNN {ms['scann']:.3f} ms, the rest {ms['added']:.2f} ms"
    )
    return ms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[early], allow_abbrev=False
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[100_000],
        help="numbers of vectors of the clustered sets",
    )
    parser.add_argument("--dim", type=int, default=256, help="width of the clustered sets, even")
    parser.add_argument("--run", help="a run; its captions and images are searched too")
    parser.add_argument("--data", default="flickr8k", help="collection of the run")
    parser.add_argument("--split", default="train", help="split of the collection")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--graphs-up-to", type=int, default=100_000, help="largest set for graphs, in vectors"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the clustered sets and the queries"
    )
    parser.add_argument(
        "--seeds", type=int, default=20, help="number of sets in the last part; 0 skips it"
    )
    parser.add_argument("--output", help="JSON file for the figures")
    options = parser.parse_args()

    missing = [
        name
        for name in options.engines
        if name in (*GRAPHS, "faiss_ivf") and not importlib.util.find_spec(name.split("_")[0])
    ]
    if missing:
        print(f"left out: {', '.join(missing)} (pip install faiss-cpu hnswlib usearch)")
    engines = [name for name in ENGINES if name in options.engines and name not in missing]
    versions = {name: version(name) for name in ("numpy", "scann", "tensorflow")}
    report = {"options": vars(options), "versions": versions, "data": []}

    def write() -> None:
        if options.output:
            text = json.dumps(report, indent=2, default=lambda value: value.item())
            Path(options.output).write_text(text + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        small = clustered(5000, options.dim, options.seed, folder)
        for name in engines:
            # The first use loads modules and makes threads and buffers: not a cost of the index.
            build(name, small, variants(name, len(small.vectors))[0])
        sets = (clustered(n, options.dim, options.seed, folder) for n in options.sizes)
        if options.run:
            sets = itertools.chain(
                sets, of_run(options.run, options.data, options.split, options.seed)
            )
        for data in sets:
            report["data"].append(compare(data, engines, options.graphs_up_to))
            write()  # after each set, so that a failure loses nothing
        if options.run and "ScannIndex" in engines:
            report["searcher_ms"] = overhead_of_searcher(options.run)
            write()
        if options.seeds and "ScannIndex" in engines:
            report["seeds"] = many_seeds(options.seeds, folder)
            write()


if __name__ == "__main__":
    main()
