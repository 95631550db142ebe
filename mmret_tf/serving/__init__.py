"""Serving (模型服务; section 6): SavedModels for TensorFlow Serving, a client, and a search page.

    signature: encoded query -> tower -> top k of the gallery, in one graph

Read `signatures` first. `client` needs neither TensorFlow nor the model code. `web` is the page and
its REST service.
"""

from typing import TYPE_CHECKING

from mmret_tf._lazy import attach

if TYPE_CHECKING:
    from mmret_tf.serving.client import ServingClient
    from mmret_tf.serving.export import docker_command, export_saved_model

__getattr__, __dir__, __all__ = attach(__name__, __file__)
