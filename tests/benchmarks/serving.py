"""Is the export of a run the same model, and how fast does it answer?

    python tests/benchmarks/serving.py --run runs/demo --data scenes

Exports the run for both engines, runs every signature in a fresh process through the V1 loader, as
TensorFlow Serving does, with 1, 3 and 64 rows, and prints the largest differences from what Python
answers. Then the median time of one text query, encoding and exact search among 10,000 items, on
one core.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import mmret_tf as mm

SCRIPT = Path(__file__).parent.parent / "run_signatures.py"
K = 10


def run(export: Path, requests: list, engine: str = "brute_force", one_core: bool = False) -> list:
    """What a fresh process answers."""

    def pin() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    done = subprocess.run(
        [sys.executable, SCRIPT, export, *(["scann"] if engine == "scann" else [])],
        input=json.dumps(requests).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        preexec_fn=pin if one_core else None,
    )
    return json.loads(done.stdout)


def compare(searcher: mm.Searcher, pairs: mm.PairDataset, engine: str, folder: Path) -> None:
    """Every signature against Python, and a line for each."""
    model = searcher.model
    captions = pairs.all_captions()
    requests, expected = [], []
    for rows in (1, 3, 64):
        texts = [captions[row * 7 % len(captions)] for row in range(rows)]
        paths = [pairs.image_paths[row % len(pairs)] for row in range(rows)]
        images = [{"b64": base64.b64encode(path.read_bytes()).decode()} for path in paths]
        weights = [row / 64 for row in range(rows)]
        embeddings = model.encode_texts(texts)
        by_text = [searcher.search(text, k=K) for text in texts]
        requests += [
            ["encode_text", {"text": texts}],
            ["encode_image", {"image": images}],
            ["serving_default", {"text": texts}],
            ["search_by_text", {"text": texts}],
            ["search_by_image", {"image": images}],
            ["search_by_text_and_image", {"text": texts, "image": images, "text_weight": weights}],
            ["search_by_embedding", {"embedding": embeddings.tolist()}],
        ]
        expected += [
            embeddings,
            model.encode_images(paths),
            by_text,
            by_text,
            [searcher.search(image=path, k=K) for path in paths],
            [
                searcher.search(text, path, K, weight)
                for text, path, weight in zip(texts, paths, weights, strict=True)
            ],
            by_text,
        ]
    print(f"{engine:<25} rows  largest difference  same ids")
    answers = run(mm.export_saved_model(searcher, folder / engine, 1, engine, K), requests, engine)
    for (signature, inputs), answer, right in zip(requests, answers, expected, strict=True):
        same = ""
        if signature.startswith("encode"):
            difference = np.abs(np.array(answer["embedding"]) - right).max()
        else:
            scores = [[result.score for result in results] for results in right]
            difference = np.abs(np.array(answer["scores"]) - scores).max()
            ids = [[result.id for result in results] for results in right]
            same = f"{np.mean(np.array(answer['ids']) == np.array(ids)):.1%}"
        rows = len(next(iter(inputs.values())))
        print(f"{signature:<25} {rows:>4} {difference:>18.1e} {same:>10}", flush=True)


def time_query(searcher: mm.Searcher, text: str, items: int, folder: Path) -> None:
    """One text query, again and again, in a gallery of so many random items."""
    vectors = np.random.default_rng(0).standard_normal((items, searcher.index.dim))
    index = mm.BruteForceIndex.build(vectors, [f"{row:08}" for row in range(items)])
    entries = [{"id": key, "captions": [f"item {key}"]} for key in index.ids]
    timed = mm.Searcher(searcher.model, index, entries)
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
