"""An optimizer with two learning rates, for fine-tuning (微调)."""

from __future__ import annotations

from collections.abc import Iterable

import keras


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
