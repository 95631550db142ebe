"""Fine-tuning (微调): the last layers of a pretrained backbone go on learning, more slowly."""

from __future__ import annotations

from collections.abc import Iterable

import keras

from mmret_tf.dual_encoder import DualEncoder


def thaw(model: DualEncoder, first_layer: str) -> None:
    """Make the backbone trainable from one layer on; all before it stay frozen.

    Batch normalization keeps what it learned in pretraining: statistics of small batches would
    spoil it. Compile the model anew afterwards.

    Args:
        model: its backbone was frozen.
        first_layer: name of a layer of `model.image_tower.backbone`: "conv5_block1_1_conv" begins
            the last stage of ResNet50.

    Raises:
        ValueError: the backbone has no layer of that name, or nothing to train from there on.

    >>> from mmret_tf.towers import image_tower, text_tower
    >>> images = keras.Input((None, None, 3))
    >>> maps = keras.layers.Conv2D(4, 3, name="last")(keras.layers.Conv2D(4, 3)(images))
    >>> backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(maps))
    >>> model = DualEncoder(image_tower(backbone), text_tower(100))
    >>> thaw(model, "last")
    >>> len(model.image_tower.backbone.trainable_variables)  # a kernel and a bias
    2
    """
    backbone = model.image_tower.backbone
    names = [layer.name for layer in backbone.layers]
    if first_layer not in names:
        raise ValueError(
            f"{backbone.name} has no layer {first_layer!r} to thaw from; its last layers are "
            f"{', '.join(names[-12:])}"
        )
    backbone.trainable = True  # of all layers; then of those that stay frozen no longer
    after = backbone.layers[names.index(first_layer) :]
    for layer in backbone.layers:
        layer.trainable = layer in after and not isinstance(layer, keras.layers.BatchNormalization)
    if not backbone.trainable_variables:
        raise ValueError(f"{backbone.name} has no weights to train from {first_layer!r} on")


@keras.saving.register_keras_serializable("mmret_tf")
class TwoRateAdam(keras.optimizers.Adam):
    """Adam with a lower learning rate for some variables, as pretrained layers need it
    (discriminative fine-tuning, arXiv 1801.06146, section 3.2).

    Args:
        learning_rate: as of Adam; a number or a schedule.
        slow: places, among the variables that it is built for, of those with the lower rate.
        slow_share: their share of the learning rate, above 0.

    Raises:
        ValueError: `slow_share` is not above 0.

    >>> one, other = keras.Variable(1.0), keras.Variable(1.0)
    >>> optimizer = TwoRateAdam(0.1, slow=[1], slow_share=0.1)
    >>> optimizer.apply([keras.ops.ones(()), keras.ops.ones(())], [one, other])
    >>> print(round(float(one), 3), round(float(other), 3))
    0.9 0.99
    """

    def __init__(
        self, learning_rate=0.001, slow: Iterable[int] = (), slow_share: float = 0.1, **kwargs
    ):
        super().__init__(learning_rate, **kwargs)
        if not slow_share > 0:
            raise ValueError(f"slow_share must be above 0; got {slow_share}")
        self.slow = sorted(slow)
        self.slow_share = slow_share

    def update_step(self, gradient, variable, learning_rate):
        if self._get_variable_index(variable) in self.slow:
            learning_rate = learning_rate * self.slow_share
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict:
        return {**super().get_config(), "slow": self.slow, "slow_share": self.slow_share}
