"""Sounds and clips on drawn data: recall among unseen items, and whether order in time is told.

    python tests/benchmarks/moving_and_sounding.py clips
    python tests/benchmarks/moving_and_sounding.py clips --frames 1
    python tests/benchmarks/moving_and_sounding.py sounds

Trains by the recipe of `mmret train` and ranks 500 unseen items. Then it shows each clip two
captions that differ in the order of their words alone, "from left to right" and "from right to
left": a model that sees one frame can only guess. For sounds the order of the two parts is
exchanged.
"""

import argparse
import re
import tempfile
import time

import mmret_tf as mm
from mmret_tf._tables import metrics_table
from mmret_tf.cli.common import console
from mmret_tf.similarity.vectors import row_cosines

ITEMS = 500  # of the test split
SETTINGS = {
    "clips": {"scenes": 3000, "epochs": 6, "min_crop": 1.0, "learning_rate": 2e-3},
    "sounds": {"scenes": 4000, "epochs": 4, "rate": 8000, "seconds": 2.0, "learning_rate": 2e-3},
}
# Directions whose words stand in the other order in the opposite direction.
ORDERS = (
    ("from left to right", "from right to left"),
    ("from top to bottom", "from bottom to top"),
    ("从左向右", "从右向左"),
    ("从上向下", "从下向上"),
    ("从左边移到右边", "从右边移到左边"),
    ("从上面移到下面", "从下面移到上面"),
)
# Words that give the direction away by themselves.
TELLING = re.compile("sinks|rises")
# How captions join the two parts of a sound.
JOINTS = ("first {}, after it {}", "{}, then {}", "先是{}，后是{}", "{}，然后是{}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=SETTINGS)
    parser.add_argument("--frames", type=int, default=4, help="frames of a clip that are seen")
    parser.add_argument("--epochs", type=int, help="passes over the training items")
    options = parser.parse_args()
    settings = SETTINGS[options.kind] | ({"epochs": options.epochs} if options.epochs else {})
    config = mm.TrainConfig(
        data=options.kind,
        backbone="SmallCNN",
        weights="none",
        image_size=64,
        frames=options.frames,
        embedding_dim=256,
        units=256,
        word_dim=128,
        batch_size=64,
        captions_per_image=1,
        dropout=0.1,
        **settings,
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as run:
        mm.train(config, run)
        model = mm.load_model(f"{run}/model.keras")
    seconds = time.monotonic() - started
    pairs = mm.evaluation.pairs_of(model, mm.load(options.kind, "test", ITEMS))[0]
    console.print(metrics_table(mm.evaluate(model, pairs)))
    told, n = told_by_order(model, pairs)
    console.print(f"order told in {told:.1%} of {n} captions; trained in {seconds:.0f} s")


def told_by_order(model: mm.MultiEncoder, pairs: mm.data.Pairs) -> tuple[float, int]:
    """Share of captions that are nearer to their item than with the order exchanged, and their
    number."""
    rows, right, wrong = [], [], []
    for row, captions in enumerate(pairs.captions):
        for caption in captions:
            if other := turned(caption) or exchanged(caption):
                rows.append(row)
                right.append(caption)
                wrong.append(other)
    items = model.encode(pairs.modalities[0], pairs.first_sources)[rows]
    nearer = [row_cosines(items, model.encode_texts(texts)) for texts in (right, wrong)]
    return float((nearer[0] > nearer[1]).mean()), len(rows)


def turned(caption: str) -> str | None:
    """A caption of a clip with its direction turned; `None` if it does not have just one."""
    found = [pair for pair in ORDERS if any(each in caption for each in pair)]
    directions = sum(caption.count(each) for pair in found for each in pair)
    if directions != 1 or TELLING.search(caption):
        return None
    one, other = found[0] if found[0][0] in caption else found[0][::-1]
    return caption.replace(one, other)


def exchanged(caption: str) -> str | None:
    """A caption of two sounds in turn, the other way round; `None` for any other."""
    for joint in JOINTS:
        if parts := re.fullmatch(joint.replace("{}", "(.+)"), caption):
            return joint.format(parts[2], parts[1])
    return None


if __name__ == "__main__":
    main()
