"""Speed of embedding files, compared with the bare tower on ready tensors.

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
from mmret_tf.models.towers.tower import input_batches
from mmret_tf.scale.compression import choose_encoder, compress_image_tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a collection of JPEGs")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    pairs = mm.load_pairs(options.data).subset(range(options.images))
    text = mm.TextPreprocessor(max_tokens=100)
    text.adapt(["a picture"])
    model = mm.DualEncoder(mm.image_tower(weights=None), mm.text_tower(text))
    batches = list(input_batches(model.image_tower, pairs.first_sources))

    chosen, sentence = choose_encoder(model, pairs.first_sources)
    print(f"mmret embed would say: {sentence}")
    encoders = [model, compress_image_tower(model, pairs.first_sources)]
    encoders += [chosen] if chosen is not model else []
    print(f"{len(pairs)} JPEGs      files/s  tensors/s  ratio (median of {options.rounds})")
    for encoder in encoders:
        tower = encoder.towers["image"]
        for batch in (batches[0], batches[-1]):  # or the first round pays for tracing both sizes
            tower.predict_on_batch(batch)
        rates = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                clock = [time.perf_counter()]
                mm.EmbeddingStore.export(encoder, pairs, Path(folder) / "embeddings")
            clock.append(time.perf_counter())
            for batch in batches:
                tower.predict_on_batch(batch)
            clock.append(time.perf_counter())
            files, tensors = np.diff(clock)
            rates.append([len(pairs) / files, len(pairs) / tensors, tensors / files])
        rates = np.median(rates, axis=0)
        print(
            f"{encoder.form:>12} {rates[0]:>11.1f} {rates[1]:>10.1f} {rates[2]:>6.3f}", flush=True
        )


if __name__ == "__main__":
    main()
