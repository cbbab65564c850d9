"""The commands of `camshaft`, one module each; `camshaft/__main__.py` has their table."""
