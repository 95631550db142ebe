"""A warning when the embeddings collapse (表示坍缩): all inputs get nearly the same one."""

import warnings

import keras

# A spread below this (the widest is 1) means that all inputs get nearly the same embedding.
COLLAPSED = 0.02


class CollapseAlarm(keras.callbacks.Callback):
    """Warns once if all embeddings are nearly the same at the end of an epoch (表示坍缩)."""

    def __init__(self):
        super().__init__()
        self.is_raised = False

    def on_epoch_end(self, epoch, logs=None):
        spread = (logs or {}).get("spread", 1.0)
        if spread < COLLAPSED and not self.is_raised:
            self.is_raised = True
            warnings.warn(
                f"the embeddings have collapsed: their spread is {spread:.4f} of at most 1, so all "
                "inputs look alike to the index. Use a loss with negatives (ContrastiveCosine), a "
                "lower learning rate, or negatives='sum' before 'hardest'.",
                stacklevel=2,
            )
