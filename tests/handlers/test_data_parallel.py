import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from camshaft.handlers import DataParallel, OptimizerStep


class TestOnOneProcess:
    def test_the_model_stays_as_it_is(self, engine_of):
        model = nn.Linear(2, 1)
        engine = engine_of(
            lambda engine, batch: model(batch).mean(),
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)),
            DataParallel(model),
        )
        engine.run([torch.ones(4, 2)] * 3)
        assert type(model) is nn.Linear
        assert engine.state.optimizer_step == 3


def test_only_a_module_is_taken():
    with pytest.raises(TypeError, match="takes the module that the step calls, but got 'model'"):
        DataParallel("model")


# 77 samples in batches of 12, that is 7 in an epoch, in groups of 4: neither comes out even.
PROGRAM = """
import json, os, sys
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Accuracy
from camshaft import *

torch.set_num_threads(1)
world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
inputs = torch.randn(77, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
results = {}

def train(name, engine_class, *more, parallel=True):
    torch.manual_seed(rank)  # the first process decides where all begin
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)).double()
    keys = list(model.state_dict())
    loader = DataLoader(data, batch_size=12 // world, shuffle=True, drop_last=True)
    evaluated = []

    def evaluation_step(engine, batch):
        evaluated.append(len(batch[0]))
        return model(batch[0]), batch[1]

    evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy()))
    trainer = engine_class(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    handlers = [
        OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)), GradientClipping(0.5),
        Evaluate(evaluator, DataLoader(data, batch_size=12 // world)), DistributedSampling(), *more,
    ]
    ema = EMA(model, decay=0.9)
    handlers += [ema, *([DataParallel(model)] if parallel else [])]
    for handler in handlers:
        handler.attach(trainer)
    try:
        state = trainer.run(loader, max_epochs=3)
    except ValueError as error:
        results[name] = str(error)
        return
    results[name] = {
        "steps": [state.iteration, state.optimizer_step],
        "weights": torch.cat([weight.flatten() for weight in model.parameters()]).tolist(),
        "averages": torch.cat([weight.flatten() for weight in ema.module.parameters()]).tolist(),
        "accuracy": state.metrics["val_accuracy"],
        "evaluated": sum(evaluated) // 3,
        "same keys": list(model.state_dict()) == keys,
    }

train("plain", Engine)
train("on ignite", IgniteEngine)
train("accumulating", Engine, GradientAccumulation(4))
train("without", Engine, parallel=False)
with open(sys.argv[1], "w") as file:
    json.dump(results, file)
"""


def results_of(processes, folder):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    started, files = [], [folder / f"{rank}.json" for rank in range(processes)]
    for rank, file in enumerate(files):
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(program), str(file)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return results_of(1, tmp_path_factory.mktemp("one_process"))[0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return results_of(2, tmp_path_factory.mktemp("two_processes"))


@pytest.mark.distributed
class TestOnTwoProcesses:
    @pytest.mark.parametrize("name", ["plain", "on ignite", "accumulating"])
    def test_both_end_where_one_process_ends_with_batches_twice_as_large(self, one_process, two_processes, name):
        for result in two_processes:
            assert result[name]["steps"] == one_process[name]["steps"]
            assert result[name]["weights"] == pytest.approx(one_process[name]["weights"], abs=1e-10)
            assert result[name]["averages"] == pytest.approx(one_process[name]["averages"], abs=1e-10)
            assert result[name]["accuracy"] == one_process[name]["accuracy"]
        assert two_processes[0][name]["weights"] == two_processes[1][name]["weights"]

    def test_each_sample_is_evaluated_once(self, two_processes):
        assert sum(result["plain"]["evaluated"] for result in two_processes) == 77

    def test_the_model_keeps_the_names_of_its_weights(self, two_processes):
        assert all(result["plain"]["same keys"] for result in two_processes)

    def test_sharing_data_without_exchanging_gradients_is_refused(self, two_processes):
        assert all("attach DataParallel(model), too" in result["without"] for result in two_processes)
