"""What the bars of tqdm and rich have in common: the stages of a run, and that drawing is rare.

At a batch's end it looks at the clock, and draws if a tenth of a second has passed; only then are metrics asked for.
Where the output is a file or a pipe, a line is written at the end of an epoch instead.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.progress.progress_bar import EpochLine, ProgressBar

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["StagesProgressBar", "convert_inf"]

_SECONDS_BETWEEN_DRAWINGS = 0.1  # an eye sees no more


class StagesProgressBar(ProgressBar):
    """A bar for each stage: ``"train"``, ``"val"``, ``"test"``, ``"predict"``; a subclass draws them.

    Args:
        leave: whether the bar of each epoch stays when it is full; otherwise the next takes its place.
    """

    def __init__(self, leave: bool) -> None:
        super().__init__()
        self._leave = leave
        self._enabled = True
        self._seconds_between = _SECONDS_BETWEEN_DRAWINGS
        self._batches_between = 1
        self._draws = False  # rather than writing lines
        self._line: EpochLine | None = None
        self._total: int | float | None = None  # batches that the bar which moves now will show
        self._trained = 0  # batches of this epoch
        self._next_drawing = math.inf
        self._training: tuple[EpochLine | None, int | float | None, float] = (None, None, 0.0)  # while it is validated

    # ------------------------------------------------------------------------------------------------- for subclasses

    @property
    def is_enabled(self) -> bool:
        """Whether it shows anything."""
        return self._enabled

    @property
    def is_disabled(self) -> bool:
        """Whether it shows nothing."""
        return not self.is_enabled

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Show something again."""
        self._enabled = True

    def _can_draw(self) -> bool:
        """Whether the output is one on which bars can be drawn."""
        raise NotImplementedError(f"{type(self).__name__} does not say on what it draws.")

    def _open(self, stage: str, trainer: Trainer) -> None:
        """Make the bar of a stage; ``"sanity"`` is the sanity check's, to which ``"val"`` refers afterwards."""

    def _begin(self, stage: str, description: str, total: int | float | None) -> None:
        """Begin a bar anew, for so many batches; None where nobody knows."""

    def _draw(self, stage: str, done: int, metrics: dict[str, Any] | None = None) -> None:
        """Draw a bar with so many batches done, and new metrics; None leaves them as they are."""

    def _pause(self, stage: str, seconds: float) -> None:
        """Do not count so many seconds."""

    def _close(self, stage: str) -> None:
        """Let go of a bar."""

    def _close_all(self) -> None:
        """Let go of all bars."""

    # --------------------------------------------------------------------------------------------------- the training

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("sanity", trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage("val", shows_line=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("train", trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = 0
        self._start("train", f"Epoch {trainer.current_epoch}", self.total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._trained = batch_idx + 1
        if self._line is not None:
            self._line.batches += 1
        elif perf_counter() >= self._next_drawing or self._trained == self._total:
            self._advance("train", self._trained, (trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._line is not None:
            line, self._line = self._line, None
            line.write(self._final_metrics(trainer, pl_module))
        elif self._shows:
            self._draw("train", self._trained, self._final_metrics(trainer, pl_module))
        self._next_drawing = math.inf

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage("train", shows_line=False)

    # -------------------------------------------------------------------------------- validation, testing, predicting

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._training = (self._line, self._total, perf_counter())
            self._enter("val", trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            what = self.sanity_check_description if trainer.sanity_checking else self.validation_description
            self._start_loader("val", what, dataloader_idx, self.total_val_batches_current_dataloader)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("val", batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_alone = trainer.state.fn != "fit"
        self._leave_stage("val", shows_line=is_alone)
        if is_alone or trainer.sanity_checking:
            return
        self._line, self._total, began_at = self._training
        if self._line is not None:
            self._line.leave_out(perf_counter() - began_at)
        elif self._shows:
            self._pause("train", perf_counter() - began_at)
            self._draw("train", self._trained, self._final_metrics(trainer, pl_module))
            self._next_drawing = perf_counter() + self._seconds_between

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("test", trainer)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            total = self.total_test_batches_current_dataloader
            self._start_loader("test", self.test_description, dataloader_idx, total)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("test", batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("predict", trainer)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            total = self.total_predict_batches_current_dataloader
            self._start_loader("predict", self.predict_description, dataloader_idx, total)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("predict", batch_idx + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_stage("predict")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bars where the error was, so that its message begins on a line of its own."""
        self._line = None
        self._next_drawing = math.inf
        self._close_all()
        self.reset_dataloader_idx_tracker()

    # ------------------------------------------------------------------------------------------------------ the stages

    @property
    def _shows(self) -> bool:
        return self.is_enabled and self._draws

    def _enter(self, stage: str, trainer: Trainer) -> None:
        self._draws = self._can_draw()
        self._line = None
        self._next_drawing = math.inf
        self._open(stage, trainer)

    def _start(self, stage: str, description: str, total: int | float) -> None:
        self._line = None
        self._next_drawing = math.inf
        self._total = convert_inf(total)
        if self._shows:
            self._begin(stage, description, self._total)
            self._next_drawing = perf_counter() + self._seconds_between
        elif self.is_enabled:
            self._line = EpochLine(description)

    def _start_loader(self, stage: str, what: str, dataloader_idx: int, total: int | float) -> None:
        if self._line is not None and self.trainer.state.fn != "fit":
            self._line.write({})  # of the loader before
        self._start(stage, f"{what} DataLoader {dataloader_idx}", total)

    def _advance(self, stage: str, done: int, whose: tuple[Trainer, LightningModule] | None = None) -> None:
        """Another batch is done; ``whose`` metrics to show with it."""
        if self._line is not None:
            self._line.batches += 1
        elif (
            (done == self._total or perf_counter() >= self._next_drawing)
            and self._shows
            and (done == self._total or done % self._batches_between == 0)
        ):
            self._draw(stage, done, None if whose is None else self.get_metrics(*whose))
            self._next_drawing = perf_counter() + self._seconds_between

    def _leave_stage(self, stage: str, *, shows_line: bool = True) -> None:
        self._close(stage)
        self._next_drawing = math.inf
        self.reset_dataloader_idx_tracker()
        line, self._line = self._line, None
        if line is not None and shows_line:
            line.write({})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_line": None, "_training": (None, None, 0.0)}


def convert_inf(x: int | float | None) -> int | float | None:
    """The number, or None where it is infinite, which is how bars put it.

    Example:
        >>> convert_inf(3), convert_inf(math.inf)
        (3, None)
    """
    return None if x is None or not math.isfinite(x) else x
