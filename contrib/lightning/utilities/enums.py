"""Names with a fixed set of values."""

from __future__ import annotations

from enum import Enum

__all__ = ["GradClipAlgorithmType", "LightningEnum"]


class LightningEnum(str, Enum):
    """An enumeration whose members equal their values, in upper or lower case.

    Example:
        >>> GradClipAlgorithmType.NORM == "norm", GradClipAlgorithmType("value") == "VALUE"
        (True, True)
    """

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Enum):
            other = other.value
        return isinstance(other, str) and self.value.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.value.lower())


class GradClipAlgorithmType(LightningEnum):
    """How gradients are clipped: each number by itself, or all together by their norm."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_type(val: str) -> bool:
        """Whether it is one of them."""
        return val in GradClipAlgorithmType.supported_types()

    @staticmethod
    def supported_types() -> list[str]:
        """Their values."""
        return [kind.value for kind in GradClipAlgorithmType]
