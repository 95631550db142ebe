"""Fine-tuning (微调): layers of a frozen backbone are thawed and train at a rate of their own."""

from collections.abc import Iterable

import keras
from keras import layers


@keras.saving.register_keras_serializable("mmret_tf")
class TwoRateAdam(keras.optimizers.Adam):
    """Adam with a lower learning rate for some variables, such as pretrained layers.

    Discriminative fine-tuning, arXiv 1801.06146, section 3.2.

    Args:
        learning_rate: As for Adam; a number or a schedule.
        slow: Positions of the slow variables in the list that the optimizer is built for.
        slow_share: Share of the learning rate that the slow variables get, above 0.

    Raises:
        ValueError: `slow_share` is not above 0.

    >>> one, other = keras.Variable(1.0), keras.Variable(1.0)
    >>> optimizer = TwoRateAdam(0.1, slow=[1], slow_share=0.1)
    >>> optimizer.apply([keras.ops.ones(()), keras.ops.ones(())], [one, other])
    >>> print(round(float(one), 3), round(float(other), 3))
    0.9 0.99
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.001,
        slow: Iterable[int] = (),
        slow_share: float = 0.1,
        **kwargs,
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


def thaw(backbone: keras.Model, first_layer: str) -> None:
    """Make a backbone trainable from one layer on; earlier layers stay frozen (微调). Section 2.2.

    Batch normalization stays frozen everywhere, because statistics of small batches would spoil
    those of the pretraining. Compile the model again afterwards.

    Args:
        backbone: The backbone of a tower, such as `model.image_tower.backbone`.
        first_layer: Name of one of its layers. "conv5_block1_1_conv" starts the last stage of
            ResNet50.

    Raises:
        ValueError: The backbone has no layer of that name, or nothing to train from there on.

    >>> images = keras.Input((None, None, 3))
    >>> maps = layers.Conv2D(4, 3, name="last")(layers.Conv2D(4, 3)(images))
    >>> backbone = keras.Model(images, layers.GlobalAveragePooling2D()(maps))
    >>> thaw(backbone, "last")
    >>> len(backbone.trainable_variables)  # a kernel and a bias
    2
    """
    names = [layer.name for layer in backbone.layers]
    if first_layer not in names:
        raise ValueError(
            f"{backbone.name} has no layer {first_layer!r} to thaw from; its last layers are "
            f"{', '.join(names[-12:])}"
        )
    backbone.trainable = True  # of the model itself; each layer is set below
    thawed = backbone.layers[names.index(first_layer) :]
    for layer in backbone.layers:
        layer.trainable = layer in thawed and not isinstance(layer, layers.BatchNormalization)
    if not backbone.trainable_variables:
        raise ValueError(f"{backbone.name} has no weights to train from {first_layer!r} on")
