"""From captions to token ids by the tokenizers of KerasHub, in TensorFlow ops. Section 3.1(1)."""

import hashlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    import keras_hub

# What a configuration holds besides settings that decide the result.
NO_SETTINGS = ("name", "trainable", "dtype", "config_file", "tokenizer", "image_converter")


def load_keras_hub() -> ModuleType:
    """KerasHub, with the ops of its tokenizers; ImportError that names what to install."""
    try:
        import keras_hub
        import tensorflow_text  # noqa: F401  registers the ops
    except ImportError as error:
        raise ImportError(f'{error}: models of KerasHub need pip install "mmret_tf[hub]"') from None
    return keras_hub


def settings_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """The settings of a preprocessor or an image converter, as JSON values."""
    return {name: value for name, value in layer.get_config().items() if name not in NO_SETTINGS}


@keras.saving.register_keras_serializable("mmret_tf")
class HubTextPreprocessor(keras.layers.Layer):
    """Captions to token ids, by a preprocessor of KerasHub as a TensorFlow graph.

    For CLIP, KerasHub's Python and TensorFlow tokenizers differ: in TensorFlow, digits stay
    together, only ASCII becomes lower case, and accents are not composed. The models were trained
    as Python has it, so that texts are brought to a form that TensorFlow reads in the same way.

    Call: strings `[n]` -> int32 `[n, sequence_length]`.

    Args:
        preprocessor: A `CLIPPreprocessor` or `SigLIPPreprocessor`. Only its tokenizer and settings
            are used; its vocabulary is saved with a model.
    """

    def __init__(self, preprocessor: "keras_hub.models.Preprocessor", **kwargs):
        super().__init__(**kwargs)
        # Without the image converter, which the other tower has.
        config = {**preprocessor.get_config(), "image_converter": None}
        config["tokenizer"] = preprocessor.tokenizer
        self.preprocessor = type(preprocessor)(**config)
        self.sequence_length = preprocessor.sequence_length
        self.is_clip = isinstance(preprocessor, load_keras_hub().models.CLIPPreprocessor)
        strings = tf.TensorSpec([None], tf.string)
        self._graph = tf.function(self._ids, input_signature=[strings], autograph=False)
        self.built = True

    @property
    def settings(self) -> list:
        """All that decides the token ids, as JSON values."""
        tokenizer = self.preprocessor.tokenizer
        if self.is_clip:
            return [settings_of(self.preprocessor), tokenizer.vocabulary, tokenizer.merges]
        return [settings_of(self.preprocessor), hashlib.sha256(tokenizer.proto).hexdigest()]

    def __call__(self, texts, **kwargs):
        return super().__call__(tf.convert_to_tensor(texts, tf.string), **kwargs)

    def call(self, texts):
        # As a graph in eager mode too, where KerasHub would use other tokenizers.
        return tf.ensure_shape(self._graph(texts), (None, self.sequence_length))

    def _ids(self, texts: tf.Tensor) -> tf.Tensor:
        """Token ids `[n, sequence_length]`."""
        if self.is_clip:
            texts = plain_for_clip(texts)
        else:
            keep_sentencepiece(self.preprocessor.tokenizer)
        return self.preprocessor({"prompts": texts, "images": None})["token_ids"]

    def count_cut(self, texts: Sequence[str]) -> int:
        """Number of texts that are longer than `sequence_length`.

        Args:
            texts: Strings.
        """
        # One place more is filled only by texts that are cut.
        places = self.sequence_length + 1
        packed = self.preprocessor({"prompts": list(texts), "images": None}, sequence_length=places)
        return int(np.count_nonzero(np.array(packed["padding_mask"])[:, -1]))

    def get_config(self) -> dict:
        preprocessor = keras.saving.serialize_keras_object(self.preprocessor)
        return {**super().get_config(), "preprocessor": preprocessor}

    @classmethod
    def from_config(cls, config: dict) -> "HubTextPreprocessor":
        load_keras_hub()
        return cls(**keras.saving.deserialize_keras_object(config))


def keep_sentencepiece(tokenizer: "keras_hub.tokenizers.SentencePieceTokenizer") -> None:
    """Let a tokenizer outlive TensorFlow's cache of kernels.

    The resource of tensorflow_text 2.20 has no name of its own and belongs to a kernel, which
    `keras.utils.set_random_seed` drops; the next text would then fail (tensorflow/text#570).

    Args:
        tokenizer: Its TensorFlow part is changed.
    """
    from tensorflow_text.python.ops import sentencepiece_tokenizer as module

    class Lasting(module._SentencepieceModelResource):
        def _create_resource(self):
            name = hashlib.sha256(self._model).hexdigest()
            make = module.gen_sentencepiece_tokenizer.sentencepiece_op
            return make(model=self._model, shared_name=name)

    part = tokenizer._sentence_piece
    if type(part._model_resource) is module._SentencepieceModelResource:
        with tf.init_scope():  # not in the graph that is being traced
            part._model_resource = Lasting(tokenizer.proto, None)


def plain_for_clip(texts: tf.Tensor) -> tf.Tensor:
    """Texts that KerasHub's TensorFlow tokenizer of CLIP reads as CLIP's own: strings `[n]`.

    >>> plain_for_clip(tf.constant(["É 42"])).numpy()[0].decode().split()
    ['é', '4', '2']
    """
    import tensorflow_text

    texts = tf.strings.regex_replace(texts, r"\x00", " ")  # `lower` would end there
    texts = tf.strings.lower(tensorflow_text.normalize_utf8(texts, "NFC"), encoding="utf-8")
    # A space would stick to the apostrophe of "dog 's", a line break does not.
    texts = tf.strings.regex_replace(texts, r"[\s\v\pZ\x{85}]+", "\n")
    return tf.strings.regex_replace(texts, r"(\p{N})", "\n\\1\n")
