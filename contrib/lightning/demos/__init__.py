"""Small modules and data to try things with; the names load when they are first used."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.demos.boring_classes import BoringDataModule, BoringModel, DemoModel
    from camshaft.contrib.lightning.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
    from camshaft.contrib.lightning.demos.transformer import LightningTransformer, Transformer, WikiText2

__all__ = [
    "BoringDataModule",
    "BoringModel",
    "DemoModel",
    "LightningLSTM",
    "LightningTransformer",
    "SequenceSampler",
    "SimpleLSTM",
    "Transformer",
    "WikiText2",
]

_modules = {
    "BoringDataModule": "boring_classes",
    "BoringModel": "boring_classes",
    "DemoModel": "boring_classes",
    "LightningLSTM": "lstm",
    "LightningTransformer": "transformer",
    "SequenceSampler": "lstm",
    "SimpleLSTM": "lstm",
    "Transformer": "transformer",
    "WikiText2": "transformer",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _modules)
