"""The `mmret` command: train, evaluate, embed, search and more from the shell.

Read `common` first. Names of `mmret_tf` are imported on first use, so `--help` does not wait for
TensorFlow.
"""

# Each registers its commands, in the order in which `mmret --help` lists them.
from mmret_tf.cli import models, galleries, collections, serving  # noqa: F401, I001
from mmret_tf.cli.common import app, main

__all__ = ["app", "main"]
