"""The cost model of `mmret_tf/scale/README.md`: does it predict what was measured?

    python tests/benchmarks/distributed.py ... --output distributed.json
    python tests/benchmarks/plan.py distributed.json

First measures its parts one by one: shards that hold next to nothing, and a search in a shard's
share of the vectors. From these and the speed of one process it predicts the figures of
`distributed.py`; the exit status is 1 if one is more than 20 % off. Then prints machines and hours
for galleries of 10 million, 1 billion and 100 billion pictures.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
from distributed import measured
from search import Data, clustered

import mmret_tf as mm
from mmret_tf.data.items import Item, item_of
from mmret_tf.data.sources import FileSource, InlineSource, identities
from mmret_tf.ranking.indexes.scann_engine import ScannConfig

CORES = 2  # of the machine where the figures are measured
WITHIN = 0.2

# The machine of the plan.
PLAN_CORES, PLAN_MEMORY = 32, 128 * 2**30
PICTURE_BYTES, NETWORK = 100_000, 10e9 / 8
ITEMS = (10**7, 10**9, 10**11)


def simulate_pool(jobs: int, seconds: float, workers: int, start: float) -> float:
    """Seconds until a pool has done all jobs: each idle worker takes the next.

    Args:
        jobs: Number of jobs.
        seconds: A job takes one worker.
        workers: Number of workers.
        start: Seconds until a worker is ready.
    """
    free = [start] * workers
    for _ in range(jobs):
        worker = int(np.argmin(free))
        free[worker] += seconds
    return max(free)


def simulate_query(shards: int, cores: int, messages: float, search: float) -> float:
    """Seconds for one query to all shards, which search on a core each."""
    return messages + max(1, shards / cores) * search


def simulate_batch(shards: int, messages: float, search: float) -> float:
    """Seconds for many queries; with all cores busy, they wait for memory as well."""
    return messages + shards * search


def seconds_of(index: mm.ranking.Index, data: Data) -> tuple[float, float]:
    """Seconds of a query alone, and of all queries in a batch."""
    row = measured(index, data)
    return row["median ms"] / 1e3, len(data.unseen) / row["queries a second"]


def message_seconds(shards: int, data: Data) -> tuple[float, float]:
    """The same where the shards have nothing to do: they hold ten vectors each."""
    rows = data.vectors[: 10 * shards]
    return seconds_of(mm.scale.ShardedIndex.build(rows, range(len(rows)), shards=shards), data)


def search_seconds(n: int, row: dict[str, float], data: Data) -> tuple[float, float]:
    """The same in one shard's part of the vectors, with its settings: on one core for a query, and
    on all for a batch."""
    config = ScannConfig(int(row["leaves"]), int(row["leaves_to_search"]), int(row["reorder"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its recall is that of the whole
        index = mm.ScannIndex.build(data.vectors[:n], range(n), queries=data.tuning, config=config)
    _, batch = seconds_of(index, data)
    index.engine.searcher.set_num_threads(1)
    return seconds_of(index, data)[0], batch


def check(name: str, predicted: float, measured: float) -> bool:
    """Print both; whether they are near each other."""
    ratio = predicted / measured
    print(f"{name:28}{predicted:12.3f}{measured:12.3f}{100 * (ratio - 1):+9.0f} %")
    return abs(ratio - 1) <= WITHIN


def compare(found: dict, folder: str) -> bool:
    """Predict the figures of `distributed.py`."""
    print(f"{'':28}{'predicted':>12}{'measured':>12}")
    embedding, is_near = found["embedding"], True
    alone = embedding["one process"]["seconds"]
    jobs = math.ceil(embedding["pictures"] / 256)
    for workers in (1, 2):
        # One process uses all cores; each of several uses its share.
        predicted = simulate_pool(jobs, workers * alone / jobs, workers, embedding["start s"])
        measured = embedding[f"{workers} workers"]["seconds"]
        is_near &= check(f"embedding, {workers} workers, s", predicted, measured)
    data = clustered(found["search"]["vectors"], 256, 0, folder)
    for shards in (2, 4):
        row = found["search"][f"{shards} shards"]
        messages = message_seconds(shards, data)
        searches = search_seconds(len(data.vectors) // shards, row, data)
        single = simulate_query(shards, CORES, messages[0], searches[0])
        batch = simulate_batch(shards, messages[1], searches[1])
        is_near &= check(f"query, {shards} shards, ms", 1e3 * single, row["median ms"])
        speed = len(data.unseen) / batch
        is_near &= check(f"{shards} shards, queries a second", speed, row["queries a second"])
    return is_near


def digest_rate(folder: Path, pictures: int = 1000) -> float:
    """Bytes a second and core that are read and digested, from files that are in memory."""
    content = np.random.default_rng(0).bytes(PICTURE_BYTES)
    paths = [folder / f"{number}.bin" for number in range(pictures)]
    for path in paths:
        path.write_bytes(content)
    started = time.perf_counter()
    identities([FileSource(path) for path in paths])
    return pictures * PICTURE_BYTES / (time.perf_counter() - started) / CORES


def record_bytes(items: int = 5000) -> float:
    """Memory of an item's record, with a path and five captions of twelve words."""
    lines = []
    for number in range(items):
        captions = [f"{number} {row} {'word ' * 12}".encode() for row in range(5)]
        sources = {"image": [FileSource(Path(f"/shared/photographs/{number}.jpg"))]}
        sources["text"] = [InlineSource(caption) for caption in captions]
        lines.append(json.dumps(item_of(f"{number}.jpg", sources, {})))
    tracemalloc.start()
    records = {record["id"]: record for record in map(Item.of, map(json.loads, lines))}
    size = tracemalloc.get_traced_memory()[0] / len(records)
    tracemalloc.stop()
    return size


def plan(found: dict, hashed: float) -> None:
    """Machines and hours."""
    embedding, search = found["embedding"], found["search"]
    rate = embedding["pictures"] / embedding["one process"]["seconds"] / CORES
    row = search["4 shards"]
    vector = row["own MiB"] * 2**20 / (search["vectors"] / 4)
    print(
        f"\n{rate:.1f} pictures a second and core; {hashed / 1e6:.0f} MB digested; "
        f"{vector:.0f} bytes a vector in a shard, while it is built; {record_bytes():.0f} a record"
    )
    for items in ITEMS:
        machines = math.ceil(items * vector / (0.8 * PLAN_MEMORY))
        hours = items / rate / PLAN_CORES / 3600
        digests = items * PICTURE_BYTES / min(hashed * PLAN_CORES, NETWORK) / 3600
        print(
            f"{items:>15,}: {hours:>12,.0f} machine hours to embed, {digests:>10,.1f} hours for "
            f"digests in one process, {machines:>6,} machines to search"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="output of distributed.py")
    found = json.loads(parser.parse_args().measured.read_text())
    with tempfile.TemporaryDirectory() as folder:
        is_near = compare(found, folder)
        plan(found, digest_rate(Path(folder)))
    sys.exit(not is_near)


if __name__ == "__main__":
    main()
