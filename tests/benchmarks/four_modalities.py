"""Four modalities in one space: a sound finds a picture, though the two never trained together.

    python tests/benchmarks/four_modalities.py

Trains one encoder on three disjoint sets of items: pictures with captions, sounds with captions and
clips with captions. Then it ranks unseen items that have all four, and prints the recall of all
twelve directions.
"""

import argparse
import itertools
import json
import time

import senses

import mmret_tf as mm

PERCEIVED = ("image", "audio", "video")  # each was trained with texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2500, help="items of each of the three sets")
    parser.add_argument("--items", type=int, default=500, help="unseen items that are ranked")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training items")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs of each set in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the highest")
    parser.add_argument("--captions", type=int, default=1, help="captions of an item in a pass")
    parser.add_argument("--json", help="where to write the figures as well")
    options = parser.parse_args()

    started = time.monotonic()
    parts = disjoint_parts(options.size)
    drawn = time.monotonic()
    model = senses.train_encoder(
        parts,
        options.epochs,
        options.batch_size,
        options.learning_rate,
        captions_per_image=options.captions,
    )
    trained = time.monotonic()
    items = senses.items_of(senses.draw_scenes("test", options.items), senses.SOURCES)
    table = twelve_directions(model, items)
    print(f"drawn in {drawn - started:.0f} s, trained in {trained - drawn:.0f} s")
    show(table, len(items))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=2)


def disjoint_parts(size: int) -> list[mm.data.Pairs]:
    """Three sets of training items, each with texts and one other modality; no scene is in two."""
    scenes = senses.draw_scenes("train", size * len(PERCEIVED))
    return [
        senses.items_of(scenes[number :: len(PERCEIVED)], (name, "text")).pairs(name, "text")
        for number, name in enumerate(PERCEIVED)
    ]


def twelve_directions(model: mm.MultiEncoder, items: mm.data.Collection) -> dict[str, dict]:
    """R@1 and R@10 of each modality as a query for each other one, in per cent."""
    embedded = [
        mm.evaluation.embed_pairs(model, pairs) for pairs in mm.evaluation.pairs_of(model, items)
    ]
    short = {"image_to_text": "i2t", "text_to_image": "t2i"}
    metrics = {}
    for values in mm.evaluation.measure_parts(embedded).values():
        metrics |= values
    table = {}
    for query, answer in itertools.permutations((*PERCEIVED, "text"), 2):
        name = f"{query}_to_{answer}"
        name = short.get(name, name)
        table[f"{query} to {answer}"] = {f"R@{k}": 100 * metrics[f"{name}_R@{k}"] for k in (1, 10)}
    return table


def show(table: dict[str, dict], n: int) -> None:
    chance = 1000 / n
    print(f"{n} unseen items; by chance R@1 is {chance / 10:.1f} % and R@10 {chance:.1f} %")
    print(f"{'':16}{'R@1':>8}{'R@10':>8}")
    for direction, values in table.items():
        note = "" if "text" in direction else "  never trained as a pair"
        print(f"{direction:16}{values['R@1']:8.1f}{values['R@10']:8.1f}{note}")
    found = table["audio to image"]["R@10"]
    print(f"audio to image: R@10 is {found:.1f} %, {found / chance:.1f} times chance")


if __name__ == "__main__":
    main()
