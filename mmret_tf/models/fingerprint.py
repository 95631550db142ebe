"""The identity of a model (指纹): a digest of its weights and settings."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops


def weights_digest(settings: Any, weights: Sequence[Any]) -> str:
    """SHA-256 of settings and weights, 64 hexadecimal digits.

    Args:
        settings: A JSON value.
        weights: Variables or arrays.

    >>> weights_digest([1], [np.ones(2)]) == weights_digest([1], [np.zeros(2)])
    False
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for weight in weights:
        value = np.ascontiguousarray(ops.convert_to_numpy(weight))
        # Names are left out: Keras renumbers unnamed layers in each process.
        digest.update(json.dumps([str(value.dtype), list(np.shape(weight))]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
