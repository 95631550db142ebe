"""Damage or forge a file of a run, checksums included, and use the run in another process.

    python tests/forge_runs.py --runs 500

The run must answer, or be refused with a ValueError of one line; a crash of the process or another
error is printed, and the exit status is 1. `forge_scann.py` goes deeper into ScaNN's own files.
"""

import argparse
import collections
import contextlib
import functools
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from forging import FINE, Opener, answer_lines, damaged, stamp_again
from full_disk import make_run

import mmret_tf as mm
from mmret_tf.models import load_model
from mmret_tf.ranking import Run, ScannConfig
from mmret_tf.scale import CompressedEncoder, compress_image_tower
from mmret_tf.training import TrainConfig, train

FEWEST = 16  # items from which ScaNN's codes are learnt
# What the run keeps of its own past: the next training in the folder reads it.
RESUMED = ("features", "backup", "config.json", "history.csv")
# What is read beside a model that was loaded before.
LATER = ("embeddings", "index", "compressed", "report.json", "parts", "reranker.keras")


def complete(run):
    """Add an index of ScaNN's, if the run has enough items, and a compressed tower to a run."""
    run = Run(run)
    model, store = run.load_model(), mm.EmbeddingStore.open(run.embeddings)
    tuned = {"config": ScannConfig(leaves=4), "queries": store.embeddings, "seconds": 0}
    if len(store) >= FEWEST:
        mm.ScannIndex.build(store.embeddings, store.ids, **tuned).save(run.index)
    pictures = [item["image"] for item in store.items[:9]]
    compress_image_tower(model, pictures).save(run.compressed)


load_whole = functools.cache(load_model)


def use(line):
    """Do with a run, `FILE<tab>FOLDER`, all that reads the file."""
    name, folder = line.split("\t")
    run, whole = Run(folder), Run(Path(folder).with_name("run"))
    if name.split("/")[0] in RESUMED:
        train(TrainConfig.load(whole.config), folder)
    model = load_whole(whole.model) if name.split("/")[0] in LATER else run.load_model()
    run.read_report()
    TrainConfig.load(run.config)
    assert np.isfinite([each.score for each in run.open_searcher(model).search("red 5", k=5)]).all()
    if name.split("/")[0] in ("reranker.keras", "parts"):
        found = run.open_searcher(model, run.load_reranker()).search("red 5", k=5)
        assert np.isfinite([each.score for each in found]).all()
    if name.startswith("compressed"):
        tower = CompressedEncoder.load(run.compressed, model).towers["image"]
        assert tower.predict_on_batch(np.zeros((2, 16, 16, 3))).shape == (2, 8)


def main(whole, runs, outcome, seed=0):
    """Damage a run again and again; print how many answered, and return what went wrong.

    Args:
        whole: The folder of the run, called "run"; the damaged ones stand beside it.
        runs: How often.
        outcome: Function of a line for `use`: "opened", "refused", or what went wrong.
        seed: Of the damage.
    """
    random, counts, wrong = np.random.default_rng(seed), collections.Counter(), []
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    files = [path for path in files if path.parts[0] not in ("logs", "plots")]
    assert outcome(f"model.keras\t{whole}") == "opened"
    for number in range(runs):
        folder, name = whole.with_name(str(number)), files[random.integers(len(files))]
        shutil.copytree(whole, folder)
        path = folder / name
        path.write_bytes(damaged(path.name, path.read_bytes(), random))
        if random.random() < 0.8:
            stamp_again(path)
        said = outcome(f"{name}\t{folder}")
        counts[said if said in FINE else "wrong"] += 1
        if said not in FINE:
            wrong.append(f"{number}, {name}: {said}")
            print(wrong[-1], flush=True)
        shutil.rmtree(folder)
    print(f"{runs} runs: {dict(counts)}")
    return wrong


def damage_one_run(runs, seed):
    """`main` with a new run, and another process that opens the damaged ones."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Opener(__file__)) as outcome:
        whole = make_run(Path(folder))
        complete(whole)
        return main(whole, runs, outcome, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.exit(
        answer_lines(use) if options.open else bool(damage_one_run(options.runs, options.seed))
    )
