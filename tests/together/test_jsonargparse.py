"""jsonargparse: handlers from the command line and from files, with the help that their docstrings give."""

import io
import json
from contextlib import redirect_stdout

import pytest
import torch

import camshaft.handlers
from camshaft.engine import Engine
from camshaft.handlers import AMP, EarlyStopping, GradientClipping, Handler, OptimizerStep, RunRecord

jsonargparse = pytest.importorskip(
    "jsonargparse", reason="jsonargparse is not installed: pip install 'jsonargparse[signatures]'"
)


@pytest.mark.parametrize("name", sorted(set(camshaft.handlers.__all__) - {"On"}))
def test_all_arguments_of_a_handler_have_types(name):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(camshaft.handlers, name), "handler", fail_untyped=True)


def test_the_help_is_what_the_docstring_says():
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(AMP, "amp", skip={"scaler"})
    with redirect_stdout(io.StringIO()) as shown:
        parser.print_help()
    text = " ".join(shown.getvalue().split())
    assert "Runs the step under ``torch.autocast``" in text
    assert "--amp.precision {bf16,fp16}" in text


def test_a_handler_is_made_from_options():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EarlyStopping, "stop", skip={"restore_best"})
    made = parser.instantiate(parser.parse_args(["--stop.monitor=val_loss", "--stop.patience=5"]))
    assert repr(made.stop) == "EarlyStopping(monitor='val_loss', patience=5)"


def test_an_unknown_choice_is_told_before_anything_runs():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AMP, "amp", skip={"scaler"})
    with pytest.raises(jsonargparse.ArgumentError, match=r"amp\.precision"):
        parser.parse_args(["--amp.precision=fp8"])


FILE = """
lr: 0.2
handlers:
- class_path: camshaft.GradientClipping
  init_args:
    max_norm: 1.0
- class_path: AMP
"""


def train(lr: float = 0.1, handlers: list[Handler] | None = None):
    """Trains a line.

    Args:
        lr: the learning rate.
        handlers: what to attach.
    """
    model = torch.nn.Linear(2, 1)
    engine = Engine(lambda engine, batch: model(batch).square().mean())
    return engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=lr)), *(handlers or ()))


def test_a_list_of_handlers_comes_from_a_file_and_options_change_it(tmp_path):
    (tmp_path / "train.yaml").write_text(FILE)
    added = '{"class_path": "camshaft.TimeLimit", "init_args": {"seconds": 60}}'
    arguments = [f"--config={tmp_path / 'train.yaml'}", f"--handlers+={added}"]
    engine = jsonargparse.auto_cli(train, args=arguments)
    assert [type(handler).__name__ for handler in engine.handlers[1:]] == ["GradientClipping", "AMP", "TimeLimit"]
    assert engine.handlers[0].optimizers[0].param_groups[0]["lr"] == 0.2
    assert engine.run([torch.ones(4, 2)] * 3).optimizer_step == 3


def test_the_record_holds_nested_namespaces(tmp_path):
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(GradientClipping, "clipping")
    options = parser.parse_args(["--clipping.max_norm=2"])
    Engine(lambda engine, batch: None).attach(RunRecord(tmp_path, options)).run([0])
    kept = json.loads((tmp_path / "run.json").read_text())["configuration"]
    assert kept["clipping"]["max_norm"] == 2
