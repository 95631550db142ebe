"""Is the export of a run the same model, and how fast does it answer?

    python tests/benchmarks/serving.py --run runs/demo --data scenes

Exports the run for both engines, runs every signature in a fresh process with 1, 3 and 64 rows, and
prints the largest differences from what Python answers. The loader is TensorFlow Serving's: in a V1
session, and through the C API without Python's TensorFlow. Then the median time of one text query,
encoding and exact search among 10,000 items, on one core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import mmret_tf as mm

TESTS = Path(__file__).parents[1] / "serving"
sys.path.insert(0, str(TESTS))
from serving_models import ask_everything  # noqa: E402

K = 10


def run(export: Path, requests: list, *options: str, one_core: bool = False) -> list:
    """What a fresh process answers."""

    def pin() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    done = subprocess.run(
        [sys.executable, TESTS / "run_signatures.py", export, *options],
        input=json.dumps(requests).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        preexec_fn=pin if one_core else None,
    )
    return json.loads(done.stdout)


def compare(searcher: mm.Searcher, pairs: mm.data.Pairs, engine: str, folder: Path) -> None:
    """Every signature against Python, and a line for each."""
    captions = pairs.all_captions()
    asked = []
    for rows in (1, 3, 64):
        texts = [captions[row * 7 % len(captions)] for row in range(rows)]
        paths = [pairs.image_paths[row % len(pairs)] for row in range(rows)]
        asked += ask_everything(searcher, texts, [path.read_bytes() for path in paths], K)
    export = mm.export_saved_model(searcher, folder / engine, 1, engine, K)
    requests = [request for request, _ in asked]
    ops = ["scann"] if engine == "scann" else []
    for loader in ([], ["c_api"]):
        print(f"{' '.join([engine, *loader]):<25} rows  largest difference  same ids")
        show(asked, run(export, requests, *ops, *loader))


def show(asked: list, answers: list) -> None:
    """A line for each answer."""
    for ((signature, _), right), answer in zip(asked, answers, strict=True):
        same = ""
        if signature.startswith("encode"):
            difference = np.abs(np.array(answer["embedding"]) - right).max()
        else:
            scores = [[result.score for result in results] for results in right]
            difference = np.abs(np.array(answer["scores"]) - scores).max()
            ids = [[result.id for result in results] for results in right]
            same = f"{np.mean(np.array(answer['ids']) == np.array(ids)):.1%}"
        print(f"{signature:<25} {len(right):>4} {difference:>18.1e} {same:>10}", flush=True)


def time_query(searcher: mm.Searcher, text: str, items: int, folder: Path) -> None:
    """One text query, again and again, in a gallery of so many random items."""
    vectors = np.random.default_rng(0).standard_normal((items, searcher.index.dim))
    index = mm.BruteForceIndex.build(vectors, [f"{row:08}" for row in range(items)])
    entries = [{"id": key, "captions": [f"item {key}"]} for key in index.ids]
    timed = mm.Searcher(searcher.encoder, index, entries)
    export = mm.export_saved_model(timed, folder / "timed", 1)
    (answer,) = run(export, [["search_by_text", {"text": [text]}, 300]], one_core=True)
    milliseconds = 1000 * np.array(answer["seconds"])
    print(
        f"text query among {items:,} items on one core: median {np.median(milliseconds):.2f} ms, "
        f"99th percentile {np.percentile(milliseconds, 99):.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", required=True, help="where queries are taken from")
    parser.add_argument("--items", type=int, default=10_000)
    options = parser.parse_args()
    searcher = mm.Searcher.open(options.run)
    pairs = mm.load_pairs(options.data, "dev")
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("brute_force", "scann"):
            compare(searcher, pairs, engine, Path(folder))
        time_query(searcher, pairs.captions[0][0], options.items, Path(folder))


if __name__ == "__main__":
    main()
