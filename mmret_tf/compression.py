"""The same image tower in fewer bits (模型压缩): int8, float16 or bfloat16, smaller or faster.

Section 7.2 and 8.3 of the document. In a gallery of pictures nearly all the time goes into the
image tower; texts stay with the model as it is. What is made here is set as a model's
`image_encoder`, and `encode_images`, `EmbeddingStore.export` and `Searcher` use it from then on.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mmret_tf.datasets import PairDataset
from mmret_tf.doctor import cpu_features
from mmret_tf.dual_encoder import DualEncoder, ImageEncoder
from mmret_tf.embeddings import model_fingerprint, row_cosines
from mmret_tf.evaluation import evaluate_retrieval
from mmret_tf.folders import open_array, partial_folder, read_manifest, replace_folder
from mmret_tf.preprocessing import ImageSource, load_batches
from mmret_tf.towers import ImageTower, unit_length

FORMAT = "mmret_tf compressed image tower"
VERSION = 1

PRECISIONS = ("int8", "float16")

# Pictures from which the converter learns the range of every activation.
CALIBRATION_IMAGES = 300

# Pictures that are embedded at once to see how far int8 is off.
BATCH = 64

# Pictures on which two forms of a tower are timed and compared. It takes some ten seconds to make
# and try a second form: not worth it where the first is done in so many seconds.
TRIAL_IMAGES = 32
WORTH_A_TRIAL = 30

# What is compared in a report, by captions and by images.
REPORTED = [f"{way}_R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]

# An embedding this near to that of float32 takes its place in any ranking that matters.
EXACT_ENOUGH = 0.999


class CompressedImageTower:
    """An image tower as a TensorFlow Lite model, run by its interpreter. Made by
    `compress_image_tower`, kept by `save`, read by `load`. Section 7.2 and 8.3.

    Set it as a model's `image_encoder`: `encode_images` uses it from then on.

    Args:
        content: the TensorFlow Lite model, from images to what `project` returns.
        shift: float32 `[dim]`, is added to what it gives.
        precision: "int8" or "float16".
        fingerprint: of the model that it was made from, see `embeddings.model_fingerprint`.
        members: of the model.

    Attributes:
        name: the precision.
        size: of the TensorFlow Lite model, bytes.

    >>> import mmret_tf as mm
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = DualEncoder(image, mm.text_tower(100, units=8, embedding_dim=8))
    >>> pictures = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    >>> folder = f"{tempfile.mkdtemp()}/compressed"
    >>> compress_image_tower(model, pictures, "float16").save(folder)
    >>> model.image_encoder = CompressedImageTower.load(folder, model)
    >>> model.image_encoder.name, model.encode_images(pictures).shape
    ('float16', (9, 8))
    """

    def __init__(
        self, content: bytes, shift: np.ndarray, precision: str, fingerprint: str, members: int = 1
    ):
        self.name = precision
        self.members = members
        self.size = len(content)
        self.fingerprint = fingerprint
        self.shift = shift  # [dim], is added to what the interpreter gives
        self._content = content
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
            self._interpreter = tf.lite.Interpreter(model_content=content, num_threads=_cores())
        self._interpreter.allocate_tensors()
        self._lock = threading.Lock()  # an interpreter serves one thread at a time

    def __repr__(self) -> str:
        return f"CompressedImageTower({self.name}, {self.size / 2**20:.1f} MiB)"

    def predict_on_batch(self, images: np.ndarray) -> np.ndarray:
        """Embed ready pictures.

        Args:
            images: `[batch, image_size, image_size, 3]`, levels 0 to 255.

        Returns:
            float32 `[batch, dim]`, rows of unit length.
        """
        return unit_length(self.project(images), self.members).numpy()

    def project(self, images: np.ndarray) -> np.ndarray:
        """What `predict_on_batch` brings to unit length, of the same `images`: float32 `[batch,
        dim]`, as `ImageTower.project`."""
        images = np.asarray(images, np.float32)
        interpreter = self._interpreter
        with self._lock:
            taken = interpreter.get_input_details()[0]
            place = taken["index"]
            if tuple(taken["shape"]) != images.shape:
                interpreter.resize_tensor_input(place, images.shape, strict=True)
                interpreter.allocate_tensors()
            interpreter.set_tensor(place, images)
            interpreter.invoke()
            vectors = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return vectors + self.shift

    def save(self, directory: str | os.PathLike) -> None:
        """Write a folder, whole or not at all.

        Args:
            directory: does not exist, is empty, or holds an older compressed tower, which is
                replaced.

        Raises:
            ValueError: the folder holds something else.
        """
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "precision": self.name,
            "fingerprint": self.fingerprint,
        }
        with replace_folder(Path(directory), manifest) as new:
            (new / "image_tower.tflite").write_bytes(self._content)
            np.save(new / "shift.npy", self.shift[None], allow_pickle=False)

    @classmethod
    def load(cls, directory: str | os.PathLike, model: DualEncoder) -> CompressedImageTower:
        """Read what `save` wrote, for the model that it was made from.

        Args:
            directory: the folder, say a run's `compressed`.
            model: the dual encoder whose image tower was compressed.

        Raises:
            ValueError: there is none, it is damaged, or it was made from another model.
        """
        directory = Path(directory)
        if not (directory.is_dir() or partial_folder(directory).is_dir()):
            raise ValueError(f"no compressed tower at {directory}: `mmret compress` makes one")
        directory, manifest = read_manifest(directory, FORMAT, VERSION)
        if manifest.get("fingerprint") != model_fingerprint(model):
            raise ValueError(
                f"{directory} was made from another model than this one: compress this one "
                "(`mmret compress`)"
            )
        content = (directory / "image_tower.tflite").read_bytes()
        shift = np.array(open_array(directory / "shift.npy", (1, model.embedding_dim)))[0]
        precision, fingerprint = manifest.get("precision"), manifest["fingerprint"]
        return cls(content, shift, precision, fingerprint, model.members)


def compress_image_tower(
    model: DualEncoder, representative: Sequence[ImageSource], precision: str = "int8"
) -> CompressedImageTower:
    """Convert the image tower with TensorFlow's own converter. Section 7.2; arXiv 1712.05877.

    "int8": weights, with a scale for each output channel, and activations, whose ranges are learnt
    from representative pictures, in 8 bits: about a quarter of the size, and several times as fast
    on a CPU. "float16": weights in 16 bits, half of the size; computed in float32.

    Args:
        model: its image tower is read, not changed.
        representative: pictures like those to come; 300 of them are used, evenly spaced.
        precision: "int8" or "float16".

    Returns:
        To be set as `model.image_encoder`, or saved.

    Raises:
        ValueError: no pictures, an unreadable one, another precision, or a tower that
            `towers.image_tower` did not make.

    >>> import mmret_tf as mm
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = DualEncoder(image, mm.text_tower(100, units=8, embedding_dim=8))
    >>> pictures = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)  # or paths
    >>> small = compress_image_tower(model, pictures)
    >>> small.name, round(image.count_params() * 4 / small.size)  # four bytes a weight before
    ('int8', 4)
    >>> bool(row_cosines(image(pictures), small.predict_on_batch(pictures)).min() > 0.99)
    True
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    tower = _checked_tower(model.image_tower)
    if len(representative) == 0:
        raise ValueError("representative must hold pictures; it is empty")

    rows = np.unique(np.linspace(0, len(representative) - 1, CALIBRATION_IMAGES).astype(int))
    sources = [representative[row] for row in rows]

    # Unit length is left to float32: in 8 bits, lengths would lose what directions keep.
    images = keras.Input((model.image_size, model.image_size, 3))
    network = keras.Model(images, tower.project(images))
    with tempfile.TemporaryDirectory() as folder:
        network.export(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        else:
            pictures = np.concatenate(list(load_batches(sources, model.image_size)))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: (
                [picture[None].astype(np.float32)] for picture in pictures
            )
        content = converter.convert()
    shift = np.zeros(model.embedding_dim, np.float32)
    fingerprint = model_fingerprint(model)
    compressed = CompressedImageTower(content, shift, precision, fingerprint, model.members)
    if precision == "int8":
        # Rounding moves all vectors alike to some degree, and that much can be put right (bias
        # correction, arXiv 1906.04721, section 4.2).
        moved = [
            network.predict_on_batch(batch) - compressed.project(batch)
            for batch in np.array_split(pictures, -(-len(pictures) // BATCH))
        ]
        compressed.shift = np.concatenate(moved).mean(axis=0)
    return compressed


class Bfloat16ImageTower:
    """An image tower whose backbone computes in bfloat16, with weights in float32 (混合精度).

    Keras' mixed precision: faster where the processor multiplies bfloat16 itself.

    Args:
        tower: what `towers.image_tower` made; it is read, not changed.
    """

    name = "bfloat16"

    def __init__(self, tower: ImageTower):
        config = _checked_tower(tower).get_config()
        config["backbone"] = _in_bfloat16(config["backbone"])
        self._tower = ImageTower.from_config(config)
        self._tower.set_weights(tower.get_weights())

    def predict_on_batch(self, images: np.ndarray) -> np.ndarray:
        """Images `[batch, height, width, 3]`, levels 0 to 255 -> float32 `[batch, dim]`."""
        return self._tower.predict_on_batch(images)


def _checked_tower(tower: keras.Model) -> ImageTower:
    """The tower, if its parts are known."""
    if not isinstance(tower, ImageTower):
        raise ValueError(
            f"only a tower that image_tower made can be compressed; got a {type(tower).__name__}"
        )
    return tower


def _in_bfloat16(config: Any) -> Any:
    """A serialized Keras object, with every layer's float32 policy replaced by a mixed one."""
    if isinstance(config, list):
        return [_in_bfloat16(part) for part in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {"name": "mixed_bfloat16"}}
    return {name: _in_bfloat16(part) for name, part in config.items()}


def has_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 itself: recent server CPUs, and GPUs."""
    on_cpu = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    return bool(on_cpu or tf.config.list_physical_devices("GPU"))


def choose_image_encoder(model: DualEncoder, images: Sequence[ImageSource]) -> str:
    """Set the fastest form of the image tower that is exact enough, and say which and why.

    bfloat16 is tried on some of the pictures, where the machine has it and there are enough of
    them: it is taken if it is faster and no embedding's cosine to that of float32 is below 0.999.

    Args:
        model: with a tower of `image_tower`; its `image_encoder` is set, or reset.
        images: what is going to be embedded, at least one.

    Returns:
        The choice in words, for whoever waits.
    """
    model.image_encoder = None
    if not has_bfloat16():
        return "float32, since this machine has no bfloat16"
    sample = next(load_batches(images[:TRIAL_IMAGES], model.image_size, TRIAL_IMAGES))
    exact, exact_speed = images_per_second(model.image_tower, sample)
    if len(images) / exact_speed < WORTH_A_TRIAL:
        return f"float32: {exact_speed:.0f} images a second"
    candidate = Bfloat16ImageTower(model.image_tower)
    found, speed = images_per_second(candidate, sample)
    cosine = row_cosines(exact, found).min()
    is_better = speed > exact_speed and cosine >= EXACT_ENOUGH
    model.image_encoder = candidate if is_better else None
    return (
        f"{'bfloat16' if is_better else 'float32'}: {speed:.0f} images a second in bfloat16, "
        f"{exact_speed:.0f} in float32, lowest cosine between them {cosine:.5f}"
    )


def compression_report(model: DualEncoder, pairs: PairDataset) -> dict:
    """What the model's `image_encoder` saves and costs beside its image tower in float32.

    Args:
        model: with a `CompressedImageTower` as its `image_encoder`.
        pairs: images with captions on which both are compared.

    Returns:
        "precision"; "bytes" and "float32_bytes" (of the tower's weights); "images_per_second" and
        "float32_images_per_second" on ready tensors; "cosine_mean" and "cosine_min" between the
        embeddings of both; and for "i2t_R@10" and so on, the metric with the encoder and, as
        "float32_i2t_R@10", without.

    Raises:
        ValueError: there is no such `image_encoder`.
    """
    encoder, paths = model.image_encoder, pairs.image_paths
    if not isinstance(encoder, CompressedImageTower):
        raise ValueError(
            "a report needs what compress_image_tower makes as the model's image_encoder; got "
            f"{type(encoder).__name__}"
        )
    found = model.encode_images(paths)
    try:
        model.image_encoder = None
        exact = model.encode_images(paths)
    finally:
        model.image_encoder = encoder
    sample = next(load_batches(paths[:TRIAL_IMAGES], model.image_size, TRIAL_IMAGES))
    cosines = row_cosines(found, exact)
    report = {
        "precision": encoder.name,
        "images": len(paths),
        "bytes": encoder.size,
        "float32_bytes": sum(weight.nbytes for weight in model.image_tower.get_weights()),
        "images_per_second": images_per_second(encoder, sample)[1],
        "float32_images_per_second": images_per_second(model.image_tower, sample)[1],
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
    }
    # Of several images of one item the first: the others have the same captions.
    rows = pairs.first_rows()
    items = pairs.subset(rows)
    texts, image_of = model.encode_texts(items.all_captions()), items.caption_to_image()
    for prefix, images in (("", found), ("float32_", exact)):
        metrics = evaluate_retrieval(images[rows], texts, image_of)
        report |= {prefix + name: metrics[name] for name in REPORTED}
    return report


def images_per_second(
    encoder: ImageEncoder | ImageTower, images: np.ndarray
) -> tuple[np.ndarray, float]:
    """Embed ready pictures, once for warming up and three times for the clock.

    Args:
        encoder: anything with `predict_on_batch`.
        images: uint8 `[n, image_size, image_size, 3]`, one batch.

    Returns:
        The embeddings `[n, dim]`, and images a second in the fastest of the three.
    """
    embeddings = encoder.predict_on_batch(images)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        encoder.predict_on_batch(images)
        seconds.append(time.perf_counter() - started)
    return embeddings, len(images) / min(seconds)


def _cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
