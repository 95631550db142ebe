"""How much of the tower's speed is left when it embeds files: decoding hidden behind computing.

    python tests/benchmarks/encoding.py --data flickr8k

Embeds JPEGs of a collection as `mmret embed` does, and then the same pictures as ready tensors in a
bare loop over the same tower: ResNet50 at 224 pixels, whose speed does not depend on its weights.
Prints the ratio of the two, for each form of the tower.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import mmret_tf as mm
from mmret_tf.compression import choose_image_encoder, compress_image_tower
from mmret_tf.preprocessing import load_batches

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a collection of JPEGs")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    pairs = mm.load_pairs(options.data).subset(range(options.images))
    text = mm.TextPreprocessor(max_tokens=100)
    text.adapt(["a picture"])
    model = mm.DualEncoder(mm.image_tower(weights=None), mm.text_tower(100), text)
    batches = list(load_batches(pairs.image_paths, model.image_size, BATCH))

    print(f"mmret embed would say: {choose_image_encoder(model, pairs.image_paths)}")
    chosen = model.image_encoder
    forms = [None, compress_image_tower(model, pairs.image_paths)]
    forms += [chosen] if chosen is not None else []
    print(f"{len(pairs)} JPEGs      files/s  tensors/s  ratio (median of {options.rounds})")
    for form in forms:
        model.image_encoder = form
        tower = form or model.image_tower
        for batch in (batches[0], batches[-1]):  # or the first round pays for tracing both sizes
            tower.predict_on_batch(batch)
        rates = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                clock = [time.perf_counter()]
                mm.EmbeddingStore.export(model, pairs, Path(folder) / "embeddings")
            clock.append(time.perf_counter())
            for batch in batches:
                tower.predict_on_batch(batch)
            clock.append(time.perf_counter())
            files, tensors = np.diff(clock)
            rates.append([len(pairs) / files, len(pairs) / tensors, tensors / files])
        rates = np.median(rates, axis=0)
        name = form.name if form else "float32"
        print(f"{name:>12} {rates[0]:>11.1f} {rates[1]:>10.1f} {rates[2]:>6.3f}", flush=True)


if __name__ == "__main__":
    main()
