"""When callbacks that log by themselves do so: at the same steps as the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["is_time_to_log", "steps_before"]


def is_time_to_log(trainer: Trainer, batch_idx: int, *, has_ended: bool = False) -> bool:
    """Whether what belongs to this batch is logged: every ``log_every_n_steps``, and when training is about to end.

    Args:
        trainer: which trains or evaluates.
        batch_idx: of the batch; where it trains, batches that complete an optimizer step are counted instead.
        has_ended: whether the batch was trained on already.
    """
    every = trainer.log_every_n_steps
    count = steps_before(trainer, has_ended=has_ended) if trainer.training else batch_idx
    return every > 0 and ((count + 1) % every == 0 or trainer.should_stop)


def steps_before(trainer: Trainer, *, has_ended: bool = False) -> int:
    """The optimizer steps of the batches before this one: the step that loggers are told.

    Args:
        trainer: which trains, or has trained before.
        has_ended: whether the batch was trained on already.
    """
    training = trainer.training_loop
    if training is None:
        return 0
    return training.batches_stepped - (has_ended and training._stepped)
