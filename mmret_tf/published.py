"""What others have published on Flickr8k, to stand beside what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Flickr8k names a photograph by two numbers of Flickr's: 1000268201_693b08cb0e.jpg.
FLICKR8K_NAME = re.compile(r"(.*/)?\d+_[0-9a-f]{10}\.jpg")


class Published(NamedTuple):
    """Recall in percent on Flickr8k's test split: 1,000 images, five captions each.

    `image_to_text` and `text_to_image` hold R@1, R@5 and R@10; `None` where they were not given.
    """

    method: str
    image_to_text: tuple[float, float, float]
    text_to_image: tuple[float, float, float] | None


# One vector an image and one a sentence, from a CNN that knows ImageNet.
FLICKR8K = (
    Published("UVS 2014, VGG + LSTM", (18.0, 40.9, 55.0), (12.5, 37.0, 51.5)),
    Published("m-CNN 2015, VGG, ensemble", (24.8, 53.7, 67.1), (20.3, 47.6, 61.7)),
    Published("ITMeetsAL 2019, MobileNet", (30.9, 58.6, 70.8), None),
    Published("FV 2015, VGG + Fisher vectors", (31.0, 59.3, 73.7), (21.2, 50.0, 64.8)),
    Published("MFM, VGG", (35.6, 67.0, 78.6), (28.4, 58.5, 72.3)),
    Published("NAA, ResNet", (37.2, 68.1, 79.1), (27.7, 59.6, 71.8)),
)


def published_results(ids: Iterable[str]) -> tuple[Published, ...]:
    """The results that were published on the collection of these images; none but for Flickr8k.

    Args:
        ids: of the images, as a `PairDataset` has them.

    Returns:
        `Published` results, recall in per cent; empty for another collection than Flickr8k.

    >>> published_results(["1000268201_693b08cb0e.jpg"])[0].method
    'UVS 2014, VGG + LSTM'
    >>> published_results(["holiday.jpg"])
    ()
    """
    return FLICKR8K if all(FLICKR8K_NAME.fullmatch(name) for name in ids) else ()
