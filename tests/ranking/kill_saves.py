"""Kills a process 50 times while it saves an index; prints how often the old and the new loaded.

Run by `test_index.py` as a process of its own: after TensorFlow has worked, a process cannot fork.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from mmret_tf.ranking.index import load_index
from mmret_tf.ranking.indexes.brute_force import BruteForceIndex

KILLS = 50


def main() -> None:
    folder = Path(sys.argv[1])
    vectors = np.random.default_rng(0).standard_normal((2000, 64))
    versions = {
        name: BruteForceIndex.build(sign * vectors, [f"{name}{row}" for row in range(2000)])
        for name, sign in (("old", 1), ("new", -1))
    }
    versions["old"].save(folder)
    started = time.monotonic()
    for _ in range(5):
        versions["old"].save(folder)
    seconds = (time.monotonic() - started) / 5
    generator, loaded = random.Random(0), Counter()
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            while True:
                for version in versions.values():
                    version.save(folder)
        time.sleep(generator.uniform(0, 4 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        index = load_index(folder)
        name = index.ids[0][:3]
        assert index.ids == versions[name].ids
        np.testing.assert_array_equal(index.vectors, versions[name].vectors)
        loaded[name] += 1
    print(dict(loaded))


if __name__ == "__main__":
    main()
