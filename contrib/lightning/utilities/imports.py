"""Which optional packages are installed, under the names that programs for Lightning ask for."""

from importlib.util import find_spec

__all__: list[str] = []

_MATPLOTLIB_AVAILABLE = find_spec("matplotlib") is not None
_OMEGACONF_AVAILABLE = find_spec("omegaconf") is not None
_RICH_AVAILABLE = find_spec("rich") is not None
_TORCHMETRICS_AVAILABLE = find_spec("torchmetrics") is not None
_TORCHVISION_AVAILABLE = find_spec("torchvision") is not None
