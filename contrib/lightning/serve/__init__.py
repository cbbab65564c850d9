"""Modules that answer requests, and whether they do."""

from camshaft.contrib.lightning.serve.servable_module import ServableModule
from camshaft.contrib.lightning.serve.servable_module_validator import ServableModuleValidator

__all__ = ["ServableModule", "ServableModuleValidator"]
