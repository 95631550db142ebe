"""Size, speed, closeness and recall of int8 and float16 image towers, compared with float32.

    python tests/benchmarks/compression.py --run runs/demo --data scenes --split test
    python tests/benchmarks/compression.py --run runs/flickr8k --data flickr8k --split dev
    python tests/benchmarks/compression.py --run runs/demo --data flickr8k --split dev \
        --image-size 224

Calibrates on training pictures and compares on the split. With another image size the run's image
tower is rebuilt for it, with the run's weights: what is then measured is closeness and speed at
that size, since the recall of such a tower means nothing. `--distill` also teaches a smaller tower.
"""

import argparse

import numpy as np

import mmret_tf as mm
from mmret_tf.models.towers.tower import input_batches
from mmret_tf.scale.compression import REPORTED, compression_report, images_per_second

# Galleries of 500 scenes, over which recalls are averaged: in one of them, a point is 5 pictures.
SCENE_SETS = 8


def resized(model: mm.DualEncoder, image_size: int) -> mm.DualEncoder:
    """The same weights for pictures of another size; of a ResNet50."""
    tower = model.image_tower
    larger = mm.image_tower(
        weights=None,
        image_size=image_size,
        embedding_dim=model.embedding_dim,
        trainable=not tower.head.normalize,
    )
    larger.set_weights(tower.get_weights())
    return mm.DualEncoder(larger, model.text_tower)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--distill", type=int, default=0, metavar="EPOCHS")
    options = parser.parse_args()

    model = mm.load_model(f"{options.run}/model.keras")
    if options.image_size:
        model = resized(model, options.image_size)
    if options.data == "scenes":
        training = mm.load_pairs("scenes", "train", 2500)
        galleries = [
            mm.load_pairs("scenes", options.split, 500, seed) for seed in range(SCENE_SETS)
        ]
    else:
        training = mm.load_pairs(options.data, "train")
        galleries = [mm.load_pairs(options.data, options.split)]

    for precision in ("int8", "float16"):
        small = mm.scale.compress_image_tower(model, training.image_paths, precision)
        reports = [compression_report(small, gallery) for gallery in galleries]
        report = {
            name: np.mean([each[name] for each in reports])
            for name, value in reports[0].items()
            if not isinstance(value, str)
        }
        print(
            f"\n{precision}, {len(reports)} x {len(galleries[0])} pictures, {model.image_size} px"
        )
        smaller = report["float32_bytes"] / report["bytes"]
        faster = report["images_per_second"] / report["float32_images_per_second"]
        print(f"  size {report['bytes'] / 1e6:.1f} MB, {smaller:.2f} times smaller")
        print(f"  {report['images_per_second']:.1f} images a second, {faster:.2f} times float32")
        print(f"  cosine: mean {report['cosine_mean']:.5f}, lowest {report['cosine_min']:.5f}")
        for name in REPORTED:
            exact, found = report[f"float32_{name}"], report[name]
            print(f"  {name:<8} {exact:7.2%} -> {found:7.2%}  {100 * (found - exact):+.2f} points")

    if options.distill:
        student = mm.image_tower("SmallCNN", None, model.image_size, model.embedding_dim)
        small = mm.scale.distill_image_tower(model, student, training, epochs=options.distill)
        sample = next(input_batches(model.image_tower, galleries[0].first_sources[:32]))
        print(f"\ndistilled in {options.distill} epochs of {len(training)} pictures")
        for name, each in (("teacher", model), ("student", small)):
            metrics = mm.evaluate(each, galleries[0])
            speed = images_per_second(each.image_tower, sample)[1]
            print(
                f"  {name}: {each.image_tower.count_params() / 1e6:.1f} million weights, "
                f"{speed:.0f} images a second, "
                f"t2i R@10 {metrics['t2i_R@10']:.1%}, i2t R@10 {metrics['i2t_R@10']:.1%}"
            )


if __name__ == "__main__":
    main()
