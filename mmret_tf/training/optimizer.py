"""The optimizer (优化器) of both stages: AdamW; its rate rises, then falls. Section 5."""

from collections.abc import Sequence
from typing import Any

import keras

from mmret_tf.models.fine_tuning import TwoRateAdam

THAWED_RATE = 0.1  # share of the learning rate for layers that are fine-tuned


def make_optimizer(
    variables: Sequence[keras.Variable],
    learning_rate: float,
    steps: int,
    weight_decay: float,
    thawed: Sequence[keras.Variable] = (),
    **options: Any,
) -> TwoRateAdam:
    """AdamW (arXiv 1711.05101) with a warm-up of a tenth of the steps and a cosine decay.

    Args:
        variables: All that is trained, in the order in which the optimizer is built for them.
        learning_rate: The highest rate.
        steps: Of the whole training.
        weight_decay: For kernels alone, see `is_decayed`; 0 for none.
        thawed: Those of the variables that are fine-tuned: at a tenth of the rate, without decay.
        options: Of `keras.optimizers.Adam`.

    >>> kernel = keras.Variable([[1.0]], name="kernel")
    >>> optimizer = make_optimizer([kernel], learning_rate=0.1, steps=20, weight_decay=0.0)
    >>> [round(float(optimizer.learning_rate), 2)]  # before the first step
    [0.0]
    """
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )
    # Adam with weight decay is AdamW. Without it the first step is compiled sooner: Keras' decay
    # puts the schedule into the graph once more for each variable.
    places = {id(variable): place for place, variable in enumerate(variables)}
    optimizer = TwoRateAdam(
        schedule,
        slow=[places[id(variable)] for variable in thawed],
        slow_share=THAWED_RATE,
        weight_decay=weight_decay or None,
        **options,
    )
    if weight_decay:
        undecayed = [each for each in variables if not is_decayed(each)]
        optimizer.exclude_from_weight_decay([*undecayed, *thawed])
    return optimizer


def is_decayed(variable: keras.Variable) -> bool:
    """Whether weight decay applies: to kernels, but not to biases, scales and word vectors.

    A word that a batch lacks has no gradient, and decay alone would shrink its vector.
    """
    return len(variable.shape) > 1 and variable.name not in ("bias", "embeddings")
