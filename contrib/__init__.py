"""Whole vehicles built from the engine and the handlers: other styles of writing research, and vendors' services."""

__all__: list[str] = []
