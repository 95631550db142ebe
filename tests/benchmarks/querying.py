"""How long does a text query take, and a `mmret search` from a cold start?

    python tests/benchmarks/querying.py --run runs/demo
    taskset -c 1 python tests/benchmarks/querying.py --run runs/demo    # on one core

Prints medians over a query of 12 words: of `Searcher.search`, of the exported graph, and of a batch
of 64 texts. Then it starts `mmret search` and, in turns with it, a bare script that imports
TensorFlow and loads the same model, as processes of their own. "CPU" is the time of all threads:
where others use the cores too, it says more than the clock.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

import mmret_tf as mm

WORDS = 12
BATCH = 64
BARE = "import sys, tensorflow, keras, mmret_tf as mm; mm.load_model(sys.argv[1])"


def make_texts(searcher: mm.Searcher) -> list[str]:
    """Texts of 12 words that the model knows, or of all that it knows."""
    words = searcher.encoder.towers["text"].text_preprocessor.get_vocabulary()[2:]
    random = np.random.default_rng(0)
    return [" ".join(random.choice(words, min(WORDS, len(words)))) for _ in range(BATCH)]


def show(name: str, run: Callable[[], object], repeats: int, divisor: int = 1) -> None:
    """Print the median time of a function in milliseconds, divided by a number of texts."""
    for _ in range(3):  # graphs are traced, and memory is allocated
        run()
    seconds, cpu = [], []
    for _ in range(repeats):
        started, cpu_started = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - cpu_started)
    wall, cpu = (1000 * np.median(each) / divisor for each in (seconds, cpu))
    print(f"{name:<34} {wall:8.2f} ms   CPU {cpu:8.2f} ms", flush=True)


def show_queries(searcher: mm.Searcher, repeats: int) -> None:
    """One text through Python and through the exported graph, then a batch."""
    texts = make_texts(searcher)
    show("Searcher.search", lambda: searcher.search(text=texts[0]), repeats)
    with tempfile.TemporaryDirectory() as folder:
        export = mm.export_saved_model(searcher, f"{folder}/timed", 1)
        loaded = tf.saved_model.load(str(export))
        text = tf.constant(texts[:1])
        for name in ("search_by_text", "encode_text"):
            signature = loaded.signatures[name]
            show(f"exported graph, {name}", lambda run=signature: run(text=text), repeats)
    encode = searcher.encoder.encode_texts
    show(f"encode_texts, {BATCH} at once, a text", lambda: encode(texts), repeats // 4, BATCH)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a process takes: by the clock, and of CPU."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def show_cold_start(run: mm.ranking.Run, text: str, turns: int) -> None:
    """`mmret search` beside the bare script."""
    search = ["-m", "mmret_tf", "search", "--run", str(run.folder), text]
    bare = ["-c", BARE, str(run.model)]
    times = np.array(
        [[timed([sys.executable, *command]) for command in (search, bare)] for _ in range(turns)]
    )
    median = np.median(times, axis=0)
    for name, (seconds, cpu) in zip(("mmret search, cold", "bare script"), median, strict=True):
        print(f"{name:<34} {seconds:8.2f} s    CPU {cpu:8.2f} s")
    ratio = np.median(times[:, 0] / times[:, 1], axis=0)
    print(f"{'ratio, median of the turns':<34} {ratio[0]:8.2f}      CPU {ratio[1]:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--repeats", type=int, default=200, help="of a query")
    parser.add_argument("--turns", type=int, default=5, help="of the cold start")
    options = parser.parse_args()
    run = mm.ranking.Run(options.run)
    searcher = run.open_searcher()
    print(f"{len(searcher.index):,} items, embeddings of width {searcher.encoder.embedding_dim}")
    show_queries(searcher, options.repeats)
    show_cold_start(run, make_texts(searcher)[0], options.turns)


if __name__ == "__main__":
    main()
