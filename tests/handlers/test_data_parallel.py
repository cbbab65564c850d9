import pytest
import torch
from torch import nn

from camshaft.handlers import DataParallel, OptimizerStep
from tests.handlers.several_processes import results_of


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


def test_two_for_one_model_are_refused(engine_of):
    model = nn.Linear(2, 1)
    engine = engine_of(lambda engine, batch: None, DataParallel(model), DataParallel(model))
    with pytest.raises(ValueError, match=r"DataParallel.* are attached for the same model: keep one of them"):
        engine.run([0])


def test_a_static_graph_beside_several_optimizer_steps_is_refused(engine_of):
    models = nn.Linear(2, 1), nn.Linear(2, 1)
    steps = [OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)) for model in models]
    engine = engine_of(lambda engine, batch: None, *steps, DataParallel(models[0], static_graph=True))
    with pytest.raises(ValueError, match="leave static_graph out"):
        engine.run([0])


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return results_of("data_parallel_program.py", 1, tmp_path_factory.mktemp("one_process"))[0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return results_of("data_parallel_program.py", 2, tmp_path_factory.mktemp("two_processes"))


@pytest.fixture
def assert_same_weights(one_process, two_processes):
    """Both processes end with the same bits, and where one ends with batches twice as large."""

    def check(name):
        first, second = (result[name] for result in two_processes)
        assert first["weights"] == second["weights"]
        assert first["weights"] == pytest.approx(one_process[name]["weights"], abs=1e-10)

    return check


@pytest.mark.distributed
class TestOnTwoProcesses:
    @pytest.mark.parametrize(
        "name",
        [
            "plain",
            "on ignite",
            "accumulating",
            "static graph",
            "static graph, accumulating",
            "without bucket views",
        ],
    )
    def test_both_end_where_one_process_ends_with_batches_twice_as_large(
        self, one_process, two_processes, assert_same_weights, name
    ):
        assert_same_weights(name)
        for result in two_processes:
            assert result[name]["steps"] == one_process[name]["steps"]
            assert result[name]["averages"] == pytest.approx(one_process[name]["averages"], abs=1e-10)
            assert result[name]["accuracy"] == one_process[name]["accuracy"]

    def test_each_sample_is_evaluated_once(self, two_processes):
        assert [result["plain"]["evaluated"] for result in two_processes] == [39, 38]

    def test_the_model_keeps_the_names_of_its_weights(self, two_processes):
        assert all(result["plain"]["same keys"] for result in two_processes)

    def test_a_step_that_does_its_own_backward_exchanges_gradients_in_it(self, assert_same_weights):
        assert_same_weights("own backward")

    @pytest.mark.parametrize("name", ["called twice", "called twice, accumulating"])
    def test_the_model_may_be_called_several_times_in_a_step(self, assert_same_weights, name):
        assert_same_weights(name)

    @pytest.mark.parametrize("name", ["parts called", "parts called, accumulating"])
    def test_a_step_that_calls_only_parts_of_the_model_exchanges_their_gradients(self, assert_same_weights, name):
        assert_same_weights(name)

    @pytest.mark.parametrize("name", ["used sometimes", "used sometimes, by parts"])
    def test_a_part_may_be_used_on_one_process_only_if_unused_parameters_are_looked_for(
        self, assert_same_weights, name
    ):
        assert_same_weights(name)

    @pytest.mark.parametrize("name", ["weighted", "weighted, accumulating"])
    def test_weights_of_micro_batches_count_among_the_processes_too(self, assert_same_weights, name):
        assert_same_weights(name)

    @pytest.mark.parametrize("name", ["adversaries", "adversaries, accumulating"])
    def test_two_models_with_an_optimizer_each_are_trained_by_a_step_that_calls_both(self, assert_same_weights, name):
        assert_same_weights(name)

    def test_one_optimizer_may_step_several_times_a_batch(self, assert_same_weights):
        assert_same_weights("several steps a batch")

    def test_a_batch_that_is_skipped_in_a_group_leaves_no_gradient_unexchanged(self, assert_same_weights):
        assert_same_weights("skipped batches")

    def test_each_step_begins_with_the_statistics_of_the_first_process(self, two_processes):
        first, second = (result["statistics"]["begun"] for result in two_processes)
        assert len(first) == 12
        assert first == second

    def test_an_evaluation_uses_the_statistics_of_the_first_process(self, two_processes):
        first, second = (result["statistics"]["evaluated"] for result in two_processes)
        assert len(first) == 2
        assert first == second

    def test_detached_it_leaves_the_model_as_it_was(self, two_processes):
        assert all(result["detached"] == {"class": True, "calls": True} for result in two_processes)

    def test_sharing_data_without_exchanging_gradients_is_refused(self, two_processes):
        assert all("attach DataParallel(model), too" in result["refused"]["without"] for result in two_processes)
