"""The same image tower in fewer bits (模型压缩): int8 or float16, by TensorFlow Lite.

Sections 7.2 and 8.3 of the document. Embedding a gallery of pictures spends nearly all of its time
in the image tower, so that is the tower that is compressed. The result is another `Encoder`, which
an `EmbeddingStore` or a `Searcher` takes in place of the model.
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tensorflow import float16, lite

from mmret_tf._checks import printable
from mmret_tf._files import open_array, partial_folder, read_manifest, replace_folder
from mmret_tf._machine import cores, quiet_stderr
from mmret_tf.data.modalities import get_modality
from mmret_tf.data.pairs import Pairs
from mmret_tf.evaluation.evaluator import embed_pairs
from mmret_tf.evaluation.metrics import evaluate_retrieval
from mmret_tf.models.encoder import Encoder, MultiEncoder, VariantEncoder
from mmret_tf.models.towers.image import ImageTower
from mmret_tf.models.towers.tower import Tower, input_batches
from mmret_tf.scale.mixed_precision import (
    bfloat16_encoder,
    has_bfloat16,
    images_per_second,
    known_image_tower,
)
from mmret_tf.similarity.vectors import row_cosines, unit_length

FORMAT = "mmret_tf compressed image tower"
VERSION = 3

# Number of pictures from which the converter learns the range of every activation.
CALIBRATION_IMAGES = 300

# Number of pictures on which two forms of a tower are timed and compared.
TRIAL_IMAGES = 32
# The trial takes about ten seconds: it is left out where float32 needs fewer seconds than this.
WORTH_A_TRIAL = 30
# Lowest cosine to the float32 embedding at which another form may replace float32.
EXACT_ENOUGH = 0.999

# Metrics in a report.
REPORTED = [f"{direction}_R@{k}" for direction in ("t2i", "i2t") for k in (1, 5, 10)]


class CompressedTower:
    """An image tower as a TensorFlow Lite model, run by its interpreter: a `TowerForm`.

    Args:
        tower: The tower in float32; it still prepares the pictures.
        content: The TensorFlow Lite model, from pictures to vectors before unit length.
        shift: Correction that is added to these vectors, float32 `[dim]`.
    """

    modality = "image"

    def __init__(self, tower: ImageTower, content: bytes, shift: np.ndarray):
        self.embedding_dim, self.batch_size = tower.embedding_dim, tower.batch_size
        self.preprocess, self.compiled_preprocess = tower.preprocess, tower.compiled_preprocess
        self._tower = tower
        self.content, self.shift = content, shift
        with warnings.catch_warnings(), quiet_stderr():
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
            self._interpreter = lite.Interpreter(model_content=content, num_threads=cores())
            self._interpreter.allocate_tensors()
            self._run = self._interpreter.get_signature_runner()
        self._lock = threading.Lock()  # an interpreter serves one thread at a time

    def __reduce__(self) -> tuple:
        """For a copy in another process, which has an interpreter of its own."""
        return CompressedTower, (self._tower, self.content, self.shift)

    def remarks(self, sources: Sequence[Any]) -> list[str]:
        """Pictures have none."""
        return [""] * len(sources)

    def predict_on_batch(self, inputs: np.ndarray) -> np.ndarray:
        """Pictures `[batch, image_size, image_size, 3]` -> float32 `[batch, dim]`, unit rows."""
        return unit_length(self.project(inputs), self._tower.members).numpy()

    def project(self, inputs: np.ndarray) -> np.ndarray:
        """`predict_on_batch` without the scaling to unit length: float32 `[batch, dim]`."""
        (name,) = self._run.get_input_details()
        with self._lock:
            (vectors,) = self._run(**{name: np.asarray(inputs, np.float32)}).values()
        return vectors + self.shift


class CompressedEncoder(VariantEncoder):
    """An encoder with a compressed image tower. Sections 7.2 and 8.3.

    Made by `compress_image_tower`, written by `save`, read by `load`. The other towers are the
    encoder's own. `form` is the precision, "int8" or "float16".

    Args:
        encoder: The encoder in float32.
        tower: The compressed form of its image tower.
        form: The precision.
        fingerprint: That of the encoder when its tower was compressed.

    Attributes:
        size: Bytes of the TensorFlow Lite model.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> pictures = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    >>> folder = f"{tempfile.mkdtemp()}/compressed"
    >>> compress_image_tower(model, pictures, "float16").save(folder)
    >>> compressed = CompressedEncoder.load(folder, model)
    >>> compressed.form, compressed.encode("image", pictures).shape
    ('float16', (9, 8))
    """

    fingerprint = ""  # in place of the property: further training changes the encoder alone

    def __init__(self, encoder: MultiEncoder, tower: CompressedTower, form: str, fingerprint: str):
        super().__init__(encoder, {tower.modality: tower}, form)
        self.size, self.fingerprint = len(tower.content), fingerprint

    def save(self, directory: str | os.PathLike) -> None:
        """Write the compressed tower to a folder, whole or not at all.

        Args:
            directory: Does not exist, is empty, or holds an older compressed tower, which is
                replaced.

        Raises:
            ValueError: The folder holds something else.
        """
        manifest = {"format": FORMAT, "version": VERSION, "precision": self.form}
        manifest["fingerprint"], tower = self.fingerprint, self.towers["image"]
        with replace_folder(Path(directory), manifest) as new:
            (new / "image_tower.tflite").write_bytes(tower.content)
            np.save(new / "shift.npy", tower.shift[None], allow_pickle=False)

    @classmethod
    def load(cls, directory: str | os.PathLike, model: MultiEncoder) -> "CompressedEncoder":
        """Read what `save` wrote.

        Args:
            directory: The folder, such as a run's `compressed`.
            model: The encoder that was compressed.

        Raises:
            ValueError: The folder is missing or damaged, or was made from another model.
        """
        directory = Path(directory)
        if not (directory.is_dir() or partial_folder(directory).is_dir()):
            raise ValueError(f"no compressed tower at {directory}: make one with `mmret compress`")
        directory, manifest = read_manifest(directory, FORMAT, VERSION)
        if manifest.get("fingerprint") != model.fingerprint:
            raise ValueError(f"{directory} was made from another model: run `mmret compress` again")
        content = (directory / "image_tower.tflite").read_bytes()
        shift = np.array(open_array(directory / "shift.npy", (1, model.embedding_dim)))[0]
        try:
            tower = CompressedTower(known_image_tower(model), content, shift)
        except Exception as error:  # whatever a damaged file does to the interpreter
            reason = printable(str(error))
            raise ValueError(f"{directory} is damaged: image_tower.tflite, {reason}") from None
        return cls(model, tower, manifest.get("precision"), manifest["fingerprint"])


def compress_image_tower(
    model: MultiEncoder, representative: Sequence[Any], precision: str = "int8"
) -> CompressedEncoder:
    """Convert the image tower with TensorFlow's own converter. Section 8.3; arXiv 1712.05877.

    "int8" computes in 8 bits: weights with a scale for each output channel, and activations whose
    ranges are learnt from representative pictures. The tower is about a quarter of the size, and
    several times as fast on a CPU. "float16" stores weights in 16 bits, half of the size, and
    computes in float32.

    Args:
        model: The encoder; it is not changed.
        representative: Pictures like those to be embedded, as `encode_images` takes them; 300 of
            them are used, evenly spaced.
        precision: "int8" or "float16".

    Returns:
        An encoder with the compressed tower.

    Raises:
        ValueError: There are no pictures, one cannot be read, the precision is unknown, or the
            image tower was not made by `image_tower`.

    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> pictures = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)  # or paths
    >>> small = compress_image_tower(model, pictures)
    >>> small.form, round(image.count_params() * 4 / small.size)  # float32 has 4 bytes a weight
    ('int8', 4)
    >>> exact, found = model.encode_images(pictures), small.encode_images(pictures)
    >>> bool(row_cosines(exact, found).min() > 0.99)
    True
    """
    if precision not in ("int8", "float16"):
        raise ValueError(f"precision must be int8 or float16; got {precision!r}")
    tower = known_image_tower(model)
    sources = get_modality("image").sources(representative)
    if not sources:
        raise ValueError("representative must hold pictures; it is empty")
    rows = np.unique(np.linspace(0, len(sources) - 1, CALIBRATION_IMAGES).astype(int))

    # Scaling to unit length stays in float32: 8 bits are too few for the squares of a length.
    inputs = keras.Input((tower.image_size, tower.image_size, 3))
    network = keras.Model(inputs, tower.head.project(tower.features(inputs)))
    converter = lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [lite.Optimize.DEFAULT]
    batches = input_batches(tower, [sources[row] for row in rows])
    pictures = [np.asarray(batch, np.float32) for batch in batches]
    if precision == "int8":
        converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([row[None]] for row in chain(*pictures))
    else:
        converter.target_spec.supported_types = [float16]
    # Keras prints what it exports.
    with warnings.catch_warnings(), quiet_stderr(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        content = converter.convert()
    compressed = CompressedTower(tower, content, np.zeros(tower.embedding_dim, np.float32))
    # Rounding shifts the mean of the vectors; this is undone (bias correction, arXiv 1906.04721,
    # section 4.2).
    moved = [network.predict_on_batch(each) - compressed.project(each) for each in pictures]
    compressed.shift = np.concatenate(moved).mean(axis=0)
    return CompressedEncoder(model, compressed, precision, model.fingerprint)


def compression_report(compressed: CompressedEncoder, pairs: Pairs) -> dict[str, Any]:
    """Compare a compressed encoder with its encoder in float32.

    Args:
        compressed: Made by `compress_image_tower`.
        pairs: Images and captions that both embed; several images of one item count as one.

    Returns:
        "precision"; "images", their number; "bytes" and "float32_bytes" of the tower's weights;
        "images_per_second" and "float32_images_per_second" on ready inputs; "cosine_mean" and
        "cosine_min" between the embeddings of both; and recalls, such as "i2t_R@10" of the
        compressed encoder and "float32_i2t_R@10".

    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> report = compression_report(compress_image_tower(model, pairs.image_paths), pairs)
    >>> report["precision"], report["images"], report["t2i_R@10"]  # of only 4 images
    ('int8', 4, 1.0)
    """
    model = compressed.encoder
    tower, small = model.towers["image"], compressed.towers["image"]
    exact, texts, items = embed_pairs(model, pairs)
    found, _, _ = embed_pairs(compressed, pairs)
    sample = next(input_batches(tower, pairs.first_sources[:TRIAL_IMAGES]))
    cosines = row_cosines(found, exact)
    report = {
        "precision": compressed.form,
        "images": len(found),
        "bytes": compressed.size,
        "float32_bytes": sum(weight.nbytes for weight in tower.get_weights()),
        "images_per_second": images_per_second(small, sample)[1],
        "float32_images_per_second": images_per_second(tower, sample)[1],
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
    }
    for prefix, images in (("", found), ("float32_", exact)):
        metrics = evaluate_retrieval(images, texts, items.caption_to_image())
        report |= {prefix + name: metrics[name] for name in REPORTED}
    return report


def choose_encoder(model: MultiEncoder, sources: Sequence[Any]) -> tuple[Encoder, str]:
    """The fastest form of an encoder that is exact enough, and the reason.

    bfloat16 is tried on some of the pictures, if the machine has it, the pictures are many, and
    `image_tower` made the tower. It is taken if it is faster and the cosine of each embedding to
    that of float32 is at least 0.999.

    Args:
        model: The encoder.
        sources: The pictures that are going to be embedded, at least one.

    Returns:
        The model itself or its `bfloat16_encoder`, and a sentence for the user.

    Raises:
        ValueError: A picture cannot be read, or there is no image tower.

    >>> import mmret_tf as mm
    >>> text = mm.TextPreprocessor()
    >>> text.adapt(["a red circle"])
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, units=8, embedding_dim=8))
    >>> encoder, why = choose_encoder(model, [np.zeros((16, 16, 3))])
    >>> encoder is model, why[:7]  # one picture is not worth a trial
    (True, 'float32')
    """
    tower = model.towers.get("image")
    if isinstance(tower, Tower) and not isinstance(tower, ImageTower):
        return model, "float32, because image_tower did not make it"
    tower = known_image_tower(model)
    if not has_bfloat16():
        return model, "float32, because this machine has no bfloat16"
    sample = next(input_batches(tower, get_modality("image").sources(sources[:TRIAL_IMAGES])))
    exact, exact_speed = images_per_second(tower, sample)
    if len(sources) / exact_speed < WORTH_A_TRIAL:
        return model, f"float32: {exact_speed:.0f} images a second"
    candidate = bfloat16_encoder(model)
    found, speed = images_per_second(candidate.towers["image"], sample)
    cosine = row_cosines(exact, found).min()
    chosen = candidate if speed > exact_speed and cosine >= EXACT_ENOUGH else model
    return chosen, (
        f"{chosen.form}: {speed:.0f} images a second in bfloat16, {exact_speed:.0f} in float32, "
        f"lowest cosine between them {cosine:.5f}"
    )
