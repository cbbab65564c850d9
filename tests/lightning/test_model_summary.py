"""What a model consists of, as a table."""

import logging

import pytest
import torch
from rich import get_console
from torch import nn

from camshaft.contrib.lightning import LightningModule, Trainer
from camshaft.contrib.lightning.callbacks import ModelSummary as ModelSummaryCallback
from camshaft.contrib.lightning.callbacks import RichModelSummary
from camshaft.contrib.lightning.utilities.model_summary import (
    LayerSummary,
    ModelSummary,
    get_human_readable_count,
    parse_batch_shape,
    summarize,
)


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x):
        return self.head(self.features(x))

    def training_step(self, batch, batch_idx):
        return self(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


TABLE = """\
  | Name         | Type       | Params | Mode  | FLOPs | In sizes | Out sizes
-----------------------------------------------------------------------------------
0 | features     | Sequential | 40     | train | 128   | [2, 4]   | [2, 8]
1 | head         | Linear     | 9      | train | 32    | [2, 8]   | [2, 1]
  | other params | n/a        | 3      | n/a   | n/a   | n/a      | n/a
-----------------------------------------------------------------------------------
49        Trainable params
3         Non-trainable params
52        Total params
0.000     Total estimated model params size (MB)
4         Modules in train mode
0         Modules in eval mode
160       Total Flops"""


def as_lines(text):
    return [line.rstrip() for line in str(text).splitlines()]


def test_the_table_has_layers_shapes_operations_and_sums():
    assert as_lines(ModelSummary(Model())) == as_lines(TABLE)


def test_of_all_depths_the_layers_within_layers_are_listed_too():
    summary = summarize(Model(), max_depth=-1)

    assert summary.layer_names == ["features", "features.0", "features.1", "head"]
    assert summary.param_nums == [40, 40, 0, 9]
    assert summary.in_sizes == [[2, 4], [2, 4], [2, 8], [2, 8]]
    assert [sum(counts.values()) for counts in summary.flop_counts.values()] == [128, 128, 0, 32]


def test_of_depth_zero_there_are_the_sums_alone():
    summary = ModelSummary(Model(), max_depth=0)

    assert (summary.layer_names, summary.total_parameters, summary.trainable_parameters) == ([], 52, 49)


def test_a_depth_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="max_depth is -1 for all layers, 0 or more, but got -2"):
        ModelSummary(Model(), max_depth=-2)


def test_without_an_example_there_are_no_shapes():
    model = Model()
    model.example_input_array = None
    summary = ModelSummary(model)

    assert "In sizes" not in str(summary)
    assert (summary.in_sizes, summary.total_flops) == (["?", "?"], 0)


@pytest.mark.parametrize("example", [(torch.zeros(2, 4),), {"x": torch.zeros(2, 4)}], ids=["tuple", "dictionary"])
def test_the_example_may_be_all_arguments_of_forward(example):
    model = Model()
    model.example_input_array = example

    assert ModelSummary(model).out_sizes == [[2, 8], [2, 1]]


def test_the_model_is_as_before_afterwards():
    class Noisy(Model):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    model = Noisy()
    model.features.eval()
    torch.manual_seed(1)
    expected = torch.rand(1)

    torch.manual_seed(1)
    ModelSummary(model)
    assert torch.equal(torch.rand(1), expected)
    assert (model.training, model.features.training, model.head.training) == (True, False, True)
    assert not model.head._forward_hooks
    assert model.head.weight.grad is None


def test_modes_are_counted():
    model = Model()
    model.head.eval()

    assert ModelSummary(model).total_training_modes == {"train": 3, "eval": 1}


def test_parameters_without_a_shape_are_a_warning():
    model = Model()
    model.head = nn.LazyLinear(1)
    model.example_input_array = None

    with pytest.warns(UserWarning, match=r"not counted in full.*set self.example_input_array"):
        assert ModelSummary(model).total_parameters == 43


def test_an_example_gives_lazy_layers_their_shape():
    model = Model()
    model.head = nn.LazyLinear(1)

    assert ModelSummary(model).total_parameters == 52


@pytest.mark.parametrize(
    ("precision", "size"), [("64-true", 8), ("32-true", 4), ("bf16-true", 2), ("bf16-mixed", 4)], ids=str
)
def test_the_size_is_that_in_the_trainer_s_precision(precision, size):
    model = Model()
    model.trainer = Trainer(precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False)

    assert ModelSummary(model).model_size == pytest.approx(52 * size * 1e-6)


def test_shapes_of_nested_batches():
    assert parse_batch_shape([torch.zeros(1, 2), (torch.zeros(3), "text")]) == [[1, 2], [[3], "?"]]


def test_a_layer_that_is_not_called_has_no_shape():
    layer = LayerSummary(nn.Linear(2, 1))

    assert (layer.in_size, layer.out_size, layer.training) == ("?", "?", True)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0  "), (999, "999  "), (1000, "1.0 K"), (123_456, "123 K"), (10**16, "10,000 T")], ids=str
)
def test_counts_are_short(number, text):
    assert get_human_readable_count(number) == text


# ---------------------------------------------------------------------------------------- callbacks


def fit(*callbacks, **arguments):
    defaults = {"max_steps": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=list(callbacks), accelerator="cpu", **(defaults | arguments))
    trainer.fit(Model(), [torch.ones(2, 4)])


def test_a_fit_begins_with_the_table(caplog):
    with caplog.at_level(logging.INFO, logger="camshaft"):
        fit()

    assert as_lines(TABLE)[2] in [line.rstrip() for line in caplog.text.splitlines()]


def test_unless_it_is_switched_off(caplog):
    with caplog.at_level(logging.INFO, logger="camshaft"):
        fit(enable_model_summary=False)
        fit(ModelSummaryCallback(max_depth=0))

    assert "Total params" not in caplog.text


def test_the_callback_says_how_deep_it_goes(caplog):
    with caplog.at_level(logging.INFO, logger="camshaft"):
        fit(ModelSummaryCallback(max_depth=2))

    assert "features.0" in caplog.text


def test_a_subclass_shows_it_in_its_own_way():
    shown = {}

    class Mine(ModelSummaryCallback):
        @staticmethod
        def summarize(summary_data, total_parameters, *sums, total_flops, **options):
            shown.update(options, names=dict(summary_data)["Name"], total=total_parameters, flops=total_flops)

    fit(Mine(colour="red"))

    assert shown == {"names": ["features", "head", "other params"], "total": 52, "flops": 160, "colour": "red"}


def test_rich_draws_it():
    with get_console().capture() as captured:
        fit(RichModelSummary(max_depth=2))

    text = captured.get()
    assert "features.0" in text
    assert "Total params: 52" in text


def test_rich_that_is_missing_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match=r"RichModelSummary needs .*pip install rich"):
        RichModelSummary()
