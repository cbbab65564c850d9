"""When callbacks that log by themselves do so: at the same steps as the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["is_time_to_log", "steps_before"]


def is_time_to_log(trainer: Trainer, batch_idx: int) -> bool:
    """Whether what belongs to this batch is logged: every ``log_every_n_steps``, and when training is about to end.

    Args:
        trainer: which trains or evaluates.
        batch_idx: of the batch; where it trains, batches that complete an optimizer step are counted instead.
    """
    every = trainer.log_every_n_steps
    count = steps_before(trainer) if trainer.training else batch_idx
    return every > 0 and ((count + 1) % every == 0 or trainer.should_stop)


def steps_before(trainer: Trainer) -> int:
    """The optimizer steps of the batches before this one: the step that loggers are told."""
    return trainer.training_loop.batches_stepped if trainer.training_loop is not None else 0
