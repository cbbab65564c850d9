"""The progress bar that a Trainer shows by default: tqdm's."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.progress.stages import StagesProgressBar, convert_inf

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

if importlib.util.find_spec("ipywidgets") is not None:
    from tqdm.auto import tqdm as _tqdm
else:  # tqdm.auto would warn, in a notebook, that it is missing
    from tqdm import tqdm as _tqdm

__all__ = ["TQDMProgressBar", "Tqdm", "convert_inf"]


class Tqdm(_tqdm):  # type: ignore[misc] # tqdm has no types
    """tqdm's bar, whose numbers keep their width, so that it does not flicker.

    Example:
        >>> Tqdm.format_num(0.5), Tqdm.format_num(12.25), Tqdm.format_num(3)
        ('0.5000', '12.25', '3')
    """

    monitor_interval = 0  # its thread would make every fork of a data loader's workers a risk

    @staticmethod
    def format_num(n: int | float | str) -> str:
        """A number; of one that is not whole, four digits."""
        return f"{n:#.4g}".rstrip(".") if isinstance(n, float) else str(_tqdm.format_num(n))


class TQDMProgressBar(StagesProgressBar):
    """Shows a bar for each stage: the sanity check, the training, each validation, a test, a prediction.

    In a terminal or a notebook it is drawn ten times a second at most, and only then are the metrics asked for. Where
    the output goes into a file or a pipe, there is a line for each epoch instead.

    Override ``init_train_tqdm`` and the likes for other bars, and ``get_metrics`` for other numbers.

    Args:
        refresh_rate: draw after a number of batches that is a multiple of this; 0 shows nothing.
        process_position: leave so many pairs of lines free above it, for bars of others.
        leave: whether the bar of each epoch stays when it is full; otherwise the next takes its place.

    Example:
        >>> class Short(TQDMProgressBar):
        ...     def get_metrics(self, trainer, pl_module):
        ...         items = super().get_metrics(trainer, pl_module)
        ...         items.pop("v_num", None)
        ...         return items
        >>> Short(refresh_rate=10).is_enabled, Short(refresh_rate=0).is_enabled
        (True, False)
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        super().__init__(leave)
        self._refresh_rate = max(refresh_rate, int(os.environ.get("TQDM_MINITERS", "0"))) if refresh_rate else 0
        self._batches_between = self._refresh_rate
        self._process_position = process_position
        self._bars: dict[str, Any] = {}  # by stage

    @property
    def refresh_rate(self) -> int:
        """It is drawn after a number of batches that is a multiple of this."""
        return self._refresh_rate

    @property
    def process_position(self) -> int:
        """So many pairs of lines above it are free."""
        return self._process_position

    @property
    def is_enabled(self) -> bool:
        """Whether it shows anything."""
        return self._enabled and self.refresh_rate > 0

    def init_sanity_tqdm(self) -> Tqdm:
        """The bar of the sanity check."""
        return self._new_bar(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> Tqdm:
        """The bar of the training."""
        return self._new_bar(self.train_description, smoothing=0)

    def init_validation_tqdm(self) -> Tqdm:
        """The bar of a validation, which is below that of the training, if there is one."""
        is_alone = self.trainer.state.fn == "validate"
        return self._new_bar(self.validation_description, below=not is_alone, leave=is_alone)

    def init_test_tqdm(self) -> Tqdm:
        """The bar of a test."""
        return self._new_bar(self.test_description)

    def init_predict_tqdm(self) -> Tqdm:
        """The bar of a prediction."""
        return self._new_bar(self.predict_description, smoothing=0)

    def _new_bar(self, description: str, *, below: bool = False, leave: bool = True, **kwargs: Any) -> Tqdm:
        return Tqdm(
            desc=description,
            position=2 * self.process_position + below,
            disable=not self._shows,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=self.BAR_FORMAT,
            **kwargs,
        )

    @property
    def train_progress_bar(self) -> Any:
        """The bar of the training."""
        return self._bar("train")

    @train_progress_bar.setter
    def train_progress_bar(self, bar: Any) -> None:
        self._bars["train"] = bar

    @property
    def val_progress_bar(self) -> Any:
        """The bar of the validation, or of the sanity check."""
        return self._bar("val")

    @val_progress_bar.setter
    def val_progress_bar(self, bar: Any) -> None:
        self._bars["val"] = bar

    @property
    def test_progress_bar(self) -> Any:
        """The bar of the test."""
        return self._bar("test")

    @test_progress_bar.setter
    def test_progress_bar(self, bar: Any) -> None:
        self._bars["test"] = bar

    @property
    def predict_progress_bar(self) -> Any:
        """The bar of the prediction."""
        return self._bar("predict")

    @predict_progress_bar.setter
    def predict_progress_bar(self, bar: Any) -> None:
        self._bars["predict"] = bar

    def _bar(self, stage: str) -> Any:
        if stage not in self._bars:
            raise TypeError(f"{type(self).__name__} has no {stage} bar yet: it is made when that stage begins.")
        return self._bars[stage]

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bars.

        Args:
            args: what to print.
            sep: what stands between.
            kwargs: ``tqdm.write``'s, such as ``end`` and ``file``.
        """
        if any(not bar.disable for bar in self._bars.values()):
            Tqdm.write(sep.join(map(str, args)), **kwargs)
        else:
            print(*args, sep=sep, **kwargs)  # noqa: T201 - what it is for

    def _can_draw(self) -> bool:
        in_notebook = any(ancestor.__name__ == "tqdm_notebook" for ancestor in Tqdm.__mro__)
        return in_notebook or sys.stdout.isatty()

    def _open(self, stage: str, trainer: Trainer) -> None:
        make = {
            "sanity": self.init_sanity_tqdm,
            "train": self.init_train_tqdm,
            "val": self.init_validation_tqdm,
            "test": self.init_test_tqdm,
            "predict": self.init_predict_tqdm,
        }[stage]
        self._bars["val" if stage == "sanity" else stage] = make()

    def _begin(self, stage: str, description: str, total: int | float | None) -> None:
        bar = self._bar(stage)
        if stage == "train" and self._leave and bar.n > 0:
            bar.close()
            bar = self._bars["train"] = self.init_train_tqdm()
        bar.reset()
        bar.total = total
        bar.initial = 0
        bar.set_description(description)

    def _draw(self, stage: str, done: int, metrics: dict[str, Any] | None = None) -> None:
        bar = self._bar(stage)
        if bar.disable:
            return
        bar.n = done
        if metrics is not None:
            bar.set_postfix(metrics, refresh=False)
        bar.refresh()

    def _pause(self, stage: str, seconds: float) -> None:
        bar = self._bar(stage)
        if not bar.disable:
            bar.start_t += seconds

    def _close(self, stage: str) -> None:
        self._bar(stage).close()

    def _close_all(self) -> None:
        for bar in self._bars.values():
            bar.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_bars": {}}
