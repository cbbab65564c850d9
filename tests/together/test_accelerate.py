"""Accelerate's prepared model, optimizer, loader and schedule in an engine, on one process and on two."""

from pathlib import Path

import pytest
import torch
from torch import nn

from camshaft.engine import Engine
from camshaft.handlers import LRScheduler, OptimizerStep
from tests.handlers.several_processes import results_of

accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install accelerate")

PROGRAM = str(Path(__file__).parent / "accelerate_program.py")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return results_of(PROGRAM, 1, tmp_path_factory.mktemp("one_process"))[0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return results_of(PROGRAM, 2, tmp_path_factory.mktemp("two_processes"))


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.distributed)], ids=["one", "two"])
def results(request):
    return [request.getfixturevalue("one_process")] if request.param == 1 else request.getfixturevalue("two_processes")


def test_a_step_that_calls_the_accelerators_backward_is_left_whole(results):
    for result in results:
        assert result["left whole"]["steps"] == 0
        assert result["left whole"]["rate"] < 0.1


def test_a_step_that_returns_the_loss_ends_in_the_same_weights(results):
    for result in results:
        assert result["returned"]["steps"] == 12
        assert result["returned"]["rate"] == 0.1  # its schedule was not stepped
        assert result["clipped"]["weights"] != result["returned"]["weights"]
        assert result["accumulated"]["steps"] == 4


@pytest.mark.parametrize(
    "name",
    [
        "resumed",
        "resumed between epochs",
        "resumed, returned",
        "resumed, stateful",
        "resumed between epochs, stateful",
    ],
)
def test_a_run_over_a_prepared_loader_goes_on_to_the_same_bits(results, name):
    for result in results:
        whole, killed = result[name]
        assert killed == whole
        assert len({tuple(map(tuple, whole["seen"][first : first + 6])) for first in (0, 6, 12)}) == 3


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["left whole", "returned", "accumulated"])
def test_two_processes_end_where_one_does(one_process, two_processes, name):
    for result in two_processes:
        assert result[name]["weights"] == pytest.approx(one_process[name]["weights"], abs=1e-6)


@pytest.mark.distributed
def test_distributed_sampling_leaves_a_prepared_loader_alone(two_processes):
    for result in two_processes:
        assert result["shared again"] == result["returned"]
        assert result["shared again"]["seen"] == sorted([*range(24)] * 2)


class TestPreparedBySomebodyElse:
    """On one process."""

    @pytest.fixture(autouse=True)
    def accelerator(self, monkeypatch):
        monkeypatch.delenv("LOCAL_RANK", raising=False)  # by which it would look for other processes
        accelerator = accelerate.Accelerator(cpu=True)
        yield accelerator
        accelerator.state._reset_state(reset_partial_state=True)

    @pytest.fixture
    def optimizer(self):
        return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)

    def test_an_optimizer_whose_gradients_accelerate_scales_is_refused(self, optimizer):
        prepared = accelerate.optimizer.AcceleratedOptimizer(optimizer, scaler=torch.amp.GradScaler("cpu"))
        with pytest.raises(
            ValueError, match=r"Let the step do accelerator.backward\(loss\) and optimizer.step\(\) itself"
        ):
            OptimizerStep(prepared)

    def test_a_prepared_schedule_is_refused_and_the_one_within_it_taken(self, accelerator, optimizer):
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        prepared_optimizer, prepared_schedule = accelerator.prepare(optimizer, schedule)
        with pytest.raises(TypeError, match="Accelerate has prepared, pass what it was prepared from"):
            LRScheduler(prepared_schedule)
        engine = Engine(lambda engine, batch: optimizer.param_groups[0]["params"][0].sum())
        engine.attach(OptimizerStep(prepared_optimizer), LRScheduler(schedule, per="step")).run([0, 1])
        assert optimizer.param_groups[0]["lr"] == 0.025
