"""What does distribution over processes cost on one machine, and is the answer the same?

    python tests/benchmarks/distributed.py --data flickr8k --backbone efficientnet_lite0.keras

Embeds 5,000 pictures in this process, and by pools of one and two workers with the same number of
threads in all; searches 1,000,000 vectors in one `ScannIndex`, and in two and four shards. Needs
`pip install "mmret_tf[distributed]"`. `replicas.py` measures training.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from search import Data, K, clustered  # limits the threads of this process to two

import mmret_tf as mm

TARGET = 0.95
SINGLE, ROUNDS = 300, 5


def make_model(options: argparse.Namespace) -> mm.DualEncoder:
    """An encoder whose image tower has the backbone; nothing is trained."""
    text = mm.TextPreprocessor()
    text.adapt(["a picture"])
    weights = None if options.backbone == "ResNet50" else "imagenet"  # a file has its own
    settings = {"weights": weights, "image_size": options.image_size, "embedding_dim": 256}
    image = mm.image_tower(options.backbone, **settings)
    return mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=256))


def compare_embedding(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds for all pictures, by one process and by pools."""
    pairs = mm.load_pairs(options.data, "train", size=options.pictures)
    pairs = pairs.subset(range(min(options.pictures, len(pairs))))
    model = make_model(options)
    # Not part of the comparison: digests, graphs, and the start of Ray.
    mm.EmbeddingStore.export(model, pairs.subset(range(64)), folder / "traced")
    for each in pairs.sources["image"]:
        each[0].identity  # noqa: B018
    mm.scale.connect()
    started = time.perf_counter()
    mm.scale.embed(model, pairs.subset([0]), folder / "start", workers=1)
    found = {"pictures": len(pairs), "start s": time.perf_counter() - started}
    exact = None
    for workers in (0, 1, 2):
        started = time.perf_counter()
        place = folder / f"store-{workers}"
        if workers:
            store = mm.scale.embed(model, pairs, place, workers=workers)
        else:
            store = mm.EmbeddingStore.export(model, pairs, place)
        seconds = time.perf_counter() - started
        exact = store.embeddings if exact is None else exact
        row = {"seconds": seconds, "differs by": float(np.abs(store.embeddings - exact).max())}
        found[f"{workers} workers" if workers else "one process"] = row
        print(f"{workers or 'no'} workers: {row}", flush=True)
    return found


def resident(pid: int) -> dict[str, float]:
    """MiB of a process: its own memory, and mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    kinds = {"own MiB": "RssAnon", "files MiB": "RssFile"}
    return {name: int(values[key].split()[0]) / 1024 for name, key in kinds.items()}


def measured(index: mm.ranking.Index, data: Data) -> dict[str, float]:
    """Recall on unseen queries, and speed alone and in a batch."""
    _, scores = index.search(data.unseen, K)
    times = []
    for query in data.unseen[:SINGLE]:
        started = time.perf_counter()
        index.search(query, K)
        times.append(time.perf_counter() - started)
    batches = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        index.search(data.unseen, K)
        batches.append(time.perf_counter() - started)
    return {
        "recall": float(np.mean(scores >= data.enough)),
        "median ms": 1e3 * float(np.median(times)),
        "99 % ms": 1e3 * float(np.quantile(times, 0.99)),
        "queries a second": len(data.unseen) / float(np.median(batches)),
    }


def compare_search(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One index beside shards, over the same vectors."""
    data = clustered(options.vectors, 256, 0, str(folder))
    arguments = (data.vectors, range(options.vectors), TARGET, data.tuning, K)
    found = {"vectors": options.vectors}
    for shards in (1, 2, 4):
        started = time.perf_counter()
        if shards == 1:
            index = mm.ScannIndex.build(*arguments)
        else:
            index = mm.scale.ShardedIndex.build(*arguments, shards=shards)
        row = {"build s": time.perf_counter() - started, **measured(index, data)}
        if shards > 1:
            each = [resident(shard["pid"]) for shard in index.stats["shards"]]
            row |= {name: float(np.mean([one[name] for one in each])) for name in each[0]}
            first = index.stats["shards"][0]
            row |= {name: first[name] for name in ("leaves", "leaves_to_search", "reorder")}
        found[f"{shards} shards"] = row
        print(f"{shards} shards: {row}", flush=True)
        del index
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--backbone", default="ResNet50", help="a Keras file, or ResNet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="*", default=["embedding", "search"])
    parser.add_argument("--output", help="JSON file")
    options = parser.parse_args()
    compare = {"embedding": compare_embedding, "search": compare_search}
    results = {}
    if options.output and Path(options.output).exists():  # the other part may be there
        results = json.loads(Path(options.output).read_text())
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            results[part] = compare[part](options, Path(folder))
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
