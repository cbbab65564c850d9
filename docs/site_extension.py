"""What the documentation site adds to Sphinx: names that link to their reference, and what each handler listens to."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.inspect import signature, stringify_signature

import camshaft
from camshaft.__main__ import COMMANDS
from camshaft.contrib import loggers
from camshaft.handlers import Handler

ROOT = Path(__file__).parents[1]

# What docstrings refer to by a short name, other than the names of `camshaft` itself, with the place of its entry.
ENTRIES = {
    "BrokenCheckpointError": "camshaft.handlers.checkpoint_store.BrokenCheckpointError",
    "MisconfigurationException": "camshaft.contrib.lightning.utilities.exceptions.MisconfigurationException",
    "Throughput": "camshaft.contrib.lightning.callbacks.throughput_monitor.Throughput",
    "measure_flops": "camshaft.contrib.lightning.utilities.measure_flops",
    "write": "camshaft.Logger.write",
}

# Modules that docstrings refer to, with the page and the heading that say what is to be said of them.
MODULES = {
    "camshaft.engine.events": ("docs/how-it-works", "events"),
    "camshaft.handlers": ("docs/reference/index", ""),
    "camshaft.handlers.logger": ("docs/reference/looking", "camshaft.Logger"),
}

# What links to its entry wherever a text names it.
LINKED = {
    name: f"{module.__name__}.{name}" for module in (loggers, camshaft) for name in module.__all__ if name[0] != "_"
}

# There, names are those of other libraries as well, or every one of them is meant literally.
WITHOUT_LINKS = re.compile(r"docs/(from-|reference/lightning)|CHANGELOG")


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill in the lists of files, and take away the python that readers need not see.

    Its lines stay, so that a warning names the right one.
    """
    text = source[0]
    if docname.startswith("notebooks/"):  # which call commands by `!`, as IPython knows it and Python does not
        notebook = json.loads(text)
        notebook["metadata"].setdefault("language_info", {"name": "python"})["pygments_lexer"] = "ipython3"
        text = json.dumps(notebook)
    for mark, listed in (("<!-- the examples -->", examples), ("<!-- the notebooks -->", notebooks)):
        if mark in text:
            text = text.replace(mark, listed())
    source[0] = re.sub(
        r"^<!-- python\n.*?^-->$", lambda hidden: "\n" * hidden[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE
    )


def examples() -> str:
    """What each of the examples says of itself, and its text."""
    return "\n\n".join(
        f"""## `{path.name}`

{ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))}

<details><summary>The program</summary>

```{{literalinclude}} ../examples/{path.name}
:language: python
```

</details>"""
        for path in sorted((ROOT / "examples").glob("*.py"))
    )


def notebooks() -> str:
    """A link to each notebook, with the sentence that it begins with."""
    lines = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        heading, _, text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).partition("\n\n")
        sentence = re.match(r".*?\.(?=\s|$)", text.replace("\n", " "))
        lines.append(f"- [{heading.lstrip('# ')}](../notebooks/{path.name}): {sentence[0] if sentence else text}")
    return "\n".join(lines)


# The reference


def show_parameters(app: Sphinx, what: str, name: str, value: Any, *_: Any) -> tuple[str, None] | None:
    """The parameters of a handler: ``Handler.__new__`` stands before them."""
    if what != "class" or not issubclass(value, Handler):
        return None
    own = signature(value.__init__, bound_method=True)
    return stringify_signature(own, show_return_annotation=False, unqualified_typehints=True), None


def tell_events(app: Sphinx, what: str, name: str, value: Any, *rest: Any) -> None:
    """Below a handler's description, from the docstring of its file: the events that it listens to, and when."""
    if what != "class" or not issubclass(value, Handler) or not name.startswith("camshaft."):
        return
    described = inspect.getdoc(inspect.getmodule(value)) or ""
    _, _, listens = described.partition("\n\n")
    if "istens" in listens:
        rest[-1].extend(["", *listens.splitlines(), ""])


def keep_colons(app: Sphinx, what: str, *rest: Any) -> None:
    """Keep napoleon from taking what stands before a colon in a property's docstring for a type."""
    if what in ("attribute", "property"):
        rest[-1][:0] = ["..", ""]  # the lines of the docstring: an empty comment comes first


def skip(app: Sphinx, what: str, name: str, value: Any, *_: Any) -> bool | None:
    """Leave out the methods of a handler that only the engine calls, at an event, or that all handlers have."""
    if type(value).__name__ == "_tuplegetter":  # a field of a named tuple, which its class describes
        return True
    if re.fullmatch(r"set_\w+_request", name):  # what scikit-learn adds to estimators
        return True
    if not inspect.isfunction(value) or not value.__module__.startswith("camshaft.handlers."):
        return None
    if value.__qualname__.startswith("Handler."):
        return None
    taken = list(inspect.signature(value).parameters)[1:]
    return True if name in vars(Handler) or taken in (["engine"], ["engine", "error"], ["engine", "event"]) else None


def take_types_literally(app: Sphinx, document: nodes.document) -> None:
    """The types in signatures: without this, Sphinx would take ``Logger`` for any class of that name."""
    for node in document.findall(addnodes.pending_xref):
        if not node.get("refspecific", True):
            del node["refspecific"]


def find_entry(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.Element) -> Any:
    """The entry of what docstrings and signatures call otherwise than the reference does.

    A type in a signature that has no entry, such as ``torch.Tensor``, is shown as it is.
    """
    target = node.get("reftarget", "")
    if target in MODULES:
        page, heading = MODULES[target]
        uri = app.builder.get_relative_uri(node["refdoc"], page) + (heading and f"#{heading}")
        return nodes.reference("", "", shown, internal=True, refuri=uri)
    package, _, name = target.rpartition(".")
    full = ENTRIES.get(name)
    if name in camshaft.__all__ and package in ("", "camshaft.engine", "camshaft.handlers"):
        full = f"camshaft.{name}"
    entry = full and env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, shown)
    return entry or (shown if _within(node, addnodes.desc_signature) else None)


class LinkNames(SphinxPostTransform):
    """Links ``EarlyStopping`` and ``EarlyStopping("val_loss")`` in a text to their entry in the reference."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        if WITHOUT_LINKS.match(self.env.docname):
            return
        python = self.env.domains["py"]
        for literal in list(self.document.findall(nodes.literal)):
            name = re.match(
                r"(?:camshaft\.(?:engine\.|handlers\.|contrib\.loggers\.)?)?(\w+)(?=$|\()", literal.astext()
            )
            entry = name and LINKED.get(name[1])
            if not entry or _within(literal, (nodes.reference, nodes.title, addnodes.desc_signature)):
                continue
            xref = addnodes.pending_xref("", refdoc=self.env.docname)
            link = python.resolve_xref(
                self.env, self.env.docname, self.app.builder, "obj", entry, xref, literal.deepcopy()
            )
            if link is not None:
                literal.replace_self(link)


def _within(node: nodes.Node, kinds: type | tuple[type, ...]) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


class Commands(Directive):
    """What each command of the command line says with ``--help``."""

    def run(self) -> list[nodes.Node]:
        sections = []
        for name, summary in COMMANDS.items():
            parser = argparse.ArgumentParser(
                prog=f"camshaft {name}",
                description=f"{summary.capitalize()}.",
                formatter_class=lambda prog: argparse.HelpFormatter(prog, width=88),
            )
            importlib.import_module(f"camshaft.commands.{name}").add_arguments(parser)
            section = nodes.section(ids=[f"camshaft-{name}"], names=[f"camshaft {name}"])
            section += nodes.title("", "", nodes.literal("", f"camshaft {name}"))
            section += nodes.literal_block("", parser.format_help(), language="text")
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", prepare)
    app.connect("autodoc-process-signature", show_parameters)
    app.connect("autodoc-process-docstring", tell_events, priority=100)  # before napoleon's sections
    app.connect("autodoc-process-docstring", keep_colons, priority=100)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", take_types_literally)
    app.connect("missing-reference", find_entry)
    app.add_post_transform(LinkNames)
    app.add_directive("commands", Commands)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
