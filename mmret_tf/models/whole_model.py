"""What all Keras models here share: weights from the start, saving, and an export of their own."""

import abc
import os
from typing import Any

import keras


class WholeModel(keras.Model, abc.ABC):
    """A Keras model whose weights are all made in `__init__`.

    A subclass defines `input_specs`, from which `export` takes its signature.
    """

    def build(self, input_shape):
        """All weights are made in `__init__`."""

    @abc.abstractmethod
    def input_specs(self) -> Any:
        """Specifications of the inputs of `call`, with any number of rows."""

    def export(
        self, filepath: str | os.PathLike, *args: Any, input_signature: Any = None, **kwargs: Any
    ) -> None:
        """Keras' `export`, which needs no call before. To serve a gallery, with preprocessing, use
        `export_saved_model`.

        Args:
            filepath: Folder to write.
            input_signature: By default, `input_specs`.
            args, kwargs: As for `keras.Model.export`.
        """
        signature = [self.input_specs()] if input_signature is None else input_signature
        super().export(filepath, *args, input_signature=signature, **kwargs)

    def save(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Keras' `save`, to a `.keras` file; other formats cannot be loaded again.

        Args:
            filepath: The file.
            args, kwargs: As for `keras.Model.save`.

        Raises:
            ValueError: The name does not end in `.keras`.
        """
        if not os.fspath(filepath).endswith(".keras"):
            raise ValueError(f"expected a file name that ends in .keras; got {filepath!r}")
        super().save(filepath, *args, **kwargs)

    def quantize(self, mode: str | None = None, **kwargs: Any) -> None:
        """Not supported: Keras could not load such a model again.

        Args:
            mode, kwargs: As for `keras.Model.quantize`.

        Raises:
            ValueError: Always. It names what to use.
        """
        raise ValueError("this model cannot be quantized in place: use compress_image_tower")
