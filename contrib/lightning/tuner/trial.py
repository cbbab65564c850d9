"""A run to try something out, after which module, trainer, loggers and random numbers are as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.evaluation import Evaluation
from camshaft.contrib.lightning.loggers.logger import DummyLogger
from camshaft.contrib.lightning.results import Results
from camshaft.contrib.lightning.trainer.states import RunningStage, TrainerState
from camshaft.contrib.lightning.tuner.module_state import left_as_it_was
from camshaft.contrib.lightning.utilities.seed import isolate_rng

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["trial"]


@contextmanager
def trial(trainer: Trainer, module: Any, callbacks: list[Any], **flags: Any) -> Iterator[Trainer]:
    """Within it there is a trainer with the same device, precision, clipping and accumulation, but nothing else.

    It does not log, save, show or validate anything, and begins at step 0.

    Args:
        trainer: of which it is a copy.
        module: which it will run, and which is put back afterwards.
        callbacks: the only ones that it has.
        flags: other attributes that it has, such as ``max_steps``.
    """
    tried = copy.copy(trainer)
    vars(tried).update(
        state=TrainerState(),
        callbacks=callbacks,
        handlers=[],
        loggers=[DummyLogger()] if trainer.loggers else [],
        profiler=None,
        enable_autolog_hparams=False,
        auto_lr_find=False,
        auto_scale_batch_size=False,
        resume_from_checkpoint=None,
        max_epochs=-1,
        min_epochs=None,
        min_steps=None,
        max_time=None,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        datamodule=None,
        results=Results(),
        training_loop=None,
        _logged_metrics={},
        ckpt_path=None,
    )
    vars(tried).update(
        _callback_metrics={},
        _progress_bar_metrics={},
        _should_stop=False,
        _loaded=None,
        _hooks=None,
        _train_source=None,
        # The module's own callbacks would save and stop; and it is no failure that a trial fails.
        _attach_models_callbacks=lambda module: None,
        _tell_of=lambda error: None,
    )
    vars(tried).update(
        validation=Evaluation(tried, RunningStage.VALIDATING),
        validate_loop=Evaluation(tried, RunningStage.VALIDATING),
        test_loop=Evaluation(tried, RunningStage.TESTING),
        predict_loop=Evaluation(tried, RunningStage.PREDICTING),
    )
    vars(tried).update(flags)
    tried.strategy = copy.copy(trainer.strategy)
    tried.strategy.trainer = tried
    with isolate_rng(), left_as_it_was(module):
        yield tried
