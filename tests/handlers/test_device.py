import importlib.util
import os
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from camshaft.engine import Engine, Events
from camshaft.handlers import Device, OptimizerStep
from camshaft.handlers.device import device_of, moved

META = torch.device("meta")  # a second device that every machine has

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    name: str


class Graph:
    """Moves itself, as the batches of Hugging Face and of PyTorch Geometric do."""

    def __init__(self, nodes):
        self.nodes = nodes

    def to(self, device):
        return Graph(self.nodes.to(device))


class TestBatches:
    @pytest.mark.parametrize(
        "batch",
        [
            torch.ones(2),
            [torch.ones(2), torch.ones(3)],
            (torch.ones(2), 1.5, None),
            {"x": torch.ones(2), "names": ["a", "b"]},
            Pair(torch.ones(2), [torch.ones(3), "text"]),
            OrderedDict(x=torch.ones(2)),
            MappingProxyType({"x": torch.ones(2)}),
            {"deep": [({"deeper": (torch.ones(2),)},)]},
            Sample(torch.ones(2), "one"),
        ],
        ids=lambda batch: type(batch).__name__,
    )
    def test_nested_batches_are_moved_and_keep_their_classes(self, engine_of, batch):
        engine = engine_of(lambda engine, batch: batch, Device("meta"))
        seen = engine.run([batch]).output
        assert self.shape_of(seen, META) == self.shape_of(batch, torch.device("cpu"))

    def shape_of(self, batch, device):
        """The classes and the other content of a batch, all of whose tensors are on ``device``."""
        if isinstance(batch, torch.Tensor):
            assert batch.device == device
            return tuple(batch.shape)
        if isinstance(batch, (dict, MappingProxyType)):
            return type(batch), [(key, self.shape_of(value, device)) for key, value in batch.items()]
        if isinstance(batch, (list, tuple)):
            return type(batch), [self.shape_of(value, device) for value in batch]
        if isinstance(batch, Sample):
            return type(batch), self.shape_of(batch.x, device), batch.name
        return batch

    def test_a_mapping_keeps_its_default_factory(self):
        batch = defaultdict(list, x=torch.ones(2))
        assert moved(batch, META)["x"].device == META
        assert moved(batch, META)["absent"] == []

    def test_an_object_with_a_method_to_moves_itself(self):
        assert moved([Graph(torch.ones(2))], META)[0].nodes.device == META

    def test_a_packed_sequence_keeps_its_batch_sizes_on_the_cpu(self):
        packed = moved(pack_sequence([torch.ones(3), torch.ones(2)]), META)
        assert isinstance(packed, PackedSequence)
        assert packed.data.device == META
        assert packed.batch_sizes.device.type == "cpu"

    @pytest.mark.parametrize("batch", ["text", b"bytes", 3, None, {"a", "b"}], ids=lambda batch: type(batch).__name__)
    def test_anything_else_stays_as_it_is(self, batch):
        assert moved(batch, META) is batch

    def test_the_loaders_batch_is_not_changed(self, engine_of):
        batch = {"x": torch.ones(2)}
        engine_of(lambda engine, batch: None, Device("meta")).run([batch])
        assert batch["x"].device.type == "cpu"

    def test_functions_of_the_user_at_the_same_event_see_the_moved_batch(self):
        engine, seen = Engine(lambda engine, batch: None), []
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, lambda: seen.append(engine.state.batch.device))
        engine.attach(Device("meta")).run([torch.ones(2)])
        assert seen == [META]

    def test_on_the_cpu_it_does_not_listen_to_batches_at_all(self, engine_of):
        engine = engine_of(lambda engine, batch: batch, Device("cpu"))
        assert not engine._event_handlers[Events.GET_BATCH_COMPLETED]
        batch = torch.ones(2)
        assert engine.run([batch]).output is batch


class TestModules:
    def test_a_module_in_the_closure_of_the_step_is_moved(self, engine_of):
        model = nn.Linear(2, 1)
        engine_of(lambda engine, batch: model(batch).shape, Device("meta")).run([torch.ones(2)])
        assert model.weight.device == META

    def test_a_module_that_an_object_holds_for_its_step_is_moved(self, engine_of):
        class Research:
            def __init__(self):
                self.networks = {"generator": nn.Linear(2, 1)}

            def step(self, engine, batch):
                return self.networks["generator"](batch).shape

        research = Research()
        engine_of(research.step, Device("meta")).run([torch.ones(2)])
        assert research.networks["generator"].weight.device == META

    def test_a_module_in_a_partial_is_moved(self, engine_of):
        model = nn.Linear(2, 1)
        engine_of(partial(lambda model, engine, batch: model(batch).shape, model), Device("meta")).run([torch.ones(2)])
        assert model.weight.device == META

    def test_a_global_module_is_moved(self, engine_of):
        model = nn.Linear(2, 1)
        names = {"model": model, "__name__": "research"}
        exec("def step(engine, batch):\n    return model(batch).shape", names)
        engine_of(names["step"], Device("meta")).run([torch.ones(2)])
        assert model.weight.device == META

    def test_the_model_of_a_trainer_made_by_ignite_is_moved(self):
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        transform = lambda x, y, y_pred, loss: loss.device  # noqa: E731
        trainer = create_supervised_trainer(model, optimizer, F.mse_loss, device=META, output_transform=transform)
        Device("meta").attach(trainer)
        assert trainer.run([(torch.ones(3, 2), torch.ones(3, 1))]).output == META
        assert model.weight.device == META

    def test_only_the_modules_that_are_named_are_moved(self, engine_of):
        model, other = nn.Linear(2, 1), nn.Linear(2, 1)
        engine_of(lambda engine, batch: model(batch).shape and other.bias.shape, Device("meta", model)).run(
            [torch.ones(2)]
        )
        assert model.weight.device == META
        assert other.weight.device.type == "cpu"

    def test_an_optimizer_of_a_module_that_was_not_found_is_refused(self, engine_of):
        model = nn.Linear(2, 1)
        engine = engine_of(
            lambda engine, batch: torch.ones(1, requires_grad=True).sum(),
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)),
            Device("meta"),
        )
        with pytest.raises(ValueError, match=r"parameter on cpu.*not found in the step.*Device\('meta', model\)"):
            engine.run([torch.ones(2)])


class TestWhichDevice:
    def test_auto_is_the_accelerator_or_else_the_cpu(self):
        expected = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
        assert Device("auto").device.type == expected
        assert Device().device == Device("auto").device

    @pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")], ids=repr)
    def test_the_cpu_is_one_device_however_it_is_written(self, engine_of, device):
        model = nn.Linear(2, 1)
        engine = engine_of(
            lambda engine, batch: model(batch).sum(),
            Device(device),
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)),
        )
        assert engine.run([torch.ones(2)]).optimizer_step == 1

    @pytest.mark.parametrize("device", ["gpu", "cpu:first", 1.5], ids=repr)
    def test_an_unknown_device_is_refused(self, device):
        with pytest.raises(ValueError, match="does not know the device"):
            Device(device)

    @pytest.mark.parametrize("device", ["cuda:999", "xpu:999"])
    def test_a_device_that_is_not_there_is_refused(self, device):
        with pytest.raises(ValueError, match=f"{device}.*is not there"):
            Device(device)

    def test_an_engine_computes_on_its_handlers_device(self, engine_of):
        assert device_of(engine_of(lambda engine, batch: None, Device("meta"))) == META

    def test_an_engine_without_the_handler_computes_where_its_modules_are(self, engine_of):
        model = nn.Linear(2, 1, device="meta")
        assert device_of(engine_of(lambda engine, batch: model(batch))) == META

    def test_two_on_one_engine_are_refused_when_the_run_starts(self, engine_of):
        engine = engine_of(lambda engine, batch: None, Device("cpu"), Device("meta"))
        with pytest.raises(ValueError, match=r"2 Device handlers.*keep one"):
            engine.run([0])


def test_after_detaching_it_batches_stay_where_they_are(engine_of):
    device = Device("meta")
    engine = engine_of(lambda engine, batch: batch.device.type, device)
    assert engine.run([torch.ones(2)]).output == "meta"
    device.detach(engine)
    assert engine.run([torch.ones(2)]).output == "cpu"


class TestXLA:
    """What is called of ``torch_xla`` (its names are those of 2.9), by a module in its place that writes it down."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []
        torch_xla = ModuleType("torch_xla")
        torch_xla.device = lambda index=None: calls.append(f"device({index})") or torch.device("xla", index or 0)
        torch_xla.sync = lambda: calls.append("sync")
        torch_xla.core = SimpleNamespace(xla_model=SimpleNamespace())
        torch_xla.runtime = SimpleNamespace(world_size=lambda: 1, global_ordinal=lambda: 0, local_ordinal=lambda: 0)
        monkeypatch.setitem(sys.modules, "torch_xla", torch_xla)
        return calls

    def test_is_asked_for_its_device_and_computes_after_each_iteration_before_anybody_looks(self, engine_of, calls):
        class Batch:
            def to(self, device):
                calls.append(f"batch to {device}")
                return self

        engine = engine_of(lambda engine, batch: calls.append("step"), Device("xla"))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: calls.append("metric"))
        engine.run([Batch(), Batch()])
        assert calls == ["device(None)", *["batch to xla:0", "step", "sync", "metric"] * 2]

    def test_may_be_one_of_several_devices(self, calls):
        assert Device("xla:1").device == torch.device("xla:1")
        assert calls == ["device(1)"]

    def test_has_the_names_that_ignite_asks_for(self, calls):
        Device("xla")
        assert sys.modules["torch_xla"].core.xla_model.xrt_world_size() == 1

    def test_is_not_imported_for_another_device(self, calls, monkeypatch):
        monkeypatch.delitem(sys.modules, "torch_xla")
        Device("cpu"), Device("meta")
        assert "torch_xla" not in sys.modules

    def test_that_cannot_be_imported_is_said_with_the_reason(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_xla", None)
        with pytest.raises(ValueError, match=r"needs torch_xla of the same version as torch.*import of torch_xla"):
            Device("xla")


# In a process of its own, because a device that torch learns of after its first backward is one too many for it.
ON_XLA = """
import torch
from ignite.metrics import Accuracy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from camshaft import Device, Engine, Evaluate, GradientClipping, Metrics, OptimizerStep

def train(device):
    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    data = DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=8)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    parameters = list(model.parameters())
    evaluator = Engine(lambda engine, batch: (model(batch[0]), batch[1]))
    evaluator.attach(Metrics(accuracy=Accuracy()), Device(device))
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    trainer.attach(
        OptimizerStep(torch.optim.SGD(parameters, lr=0.1, momentum=0.9)), Device(device), GradientClipping(1.0),
        Evaluate(evaluator, data),
    )
    state = trainer.run(data, max_epochs=3)
    assert all(mine is other for mine, other in zip(model.parameters(), parameters, strict=True))
    return torch.cat([parameter.detach().cpu().flatten() for parameter in parameters]), state

weights, state = train("xla")
expected, expected_state = train("cpu")
assert state.output.device.type == "xla"
assert torch.allclose(weights, expected, atol=1e-6)
assert state.metrics["val_accuracy"] == expected_state.metrics["val_accuracy"]
import torch_xla.debug.metrics as metrics
assert metrics.metric_data("CompileTime")[0] < 10
assert metrics.metric_data("ExecuteTime")[0] >= 24 + 24  # three epochs of training, and as much evaluation
"""


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")
def test_on_xlas_own_cpu_device_it_trains_as_on_the_cpu_in_few_graphs():
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", ON_XLA], env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
