import pytest
import torch
from torch import nn

from camshaft.handlers import FullySharded, OptimizerStep
from tests.handlers.several_processes import results_of


class TestOnOneProcess:
    def test_the_model_stays_as_it_is(self, engine_of):
        model = nn.Linear(2, 1)
        weight = model.weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = engine_of(
            lambda engine, batch: model(batch).mean(), OptimizerStep(optimizer), FullySharded(model, wrap=nn.Conv2d)
        )
        engine.run([torch.ones(4, 2)] * 3)
        assert type(model) is nn.Linear
        assert model.weight is weight
        assert engine.state.optimizer_step == 3


def test_only_a_module_is_taken():
    with pytest.raises(TypeError, match="takes the module that the step calls, but got 'model'"):
        FullySharded("model")


@pytest.mark.parametrize("wrap", ["blocks", 3, [nn.Linear, "blocks"]], ids=["name", "number", "mixture"])
def test_what_to_wrap_is_said_by_classes_or_a_function(wrap):
    with pytest.raises(TypeError, match="wraps 'auto', classes of modules, or what a function says"):
        FullySharded(nn.Linear(2, 1), wrap=wrap)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return results_of("sharded_program.py", 1, tmp_path_factory.mktemp("one_process"))[0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return results_of("sharded_program.py", 2, tmp_path_factory.mktemp("two_processes"))


@pytest.fixture
def assert_same_weights(one_process, two_processes):
    """Both processes end with the same bits, and where one ends with batches twice as large, in float32."""

    def check(name, tolerance=5e-7):
        first, second = (result[name] for result in two_processes)
        assert first["weights"] == second["weights"]
        assert first["weights"] == pytest.approx(one_process[name]["weights"], abs=tolerance)

    return check


WHOLE_PROGRAMS = [
    "plain",
    "on ignite",
    "blocks",
    "kept after forward",
    "accumulating",
    "accumulating each",
    "by value",
    "largest",
    "offloaded",
]


@pytest.mark.distributed
class TestOnTwoProcesses:
    @pytest.mark.parametrize("name", WHOLE_PROGRAMS)
    def test_both_end_where_one_process_ends_with_batches_twice_as_large(
        self, one_process, two_processes, assert_same_weights, name
    ):
        assert_same_weights(name)
        for result in two_processes:
            assert result[name]["steps"] == one_process[name]["steps"]
            assert result[name]["averages"] == pytest.approx(one_process[name]["averages"], abs=5e-7)
            assert result[name]["accuracies"] == one_process[name]["accuracies"]

    def test_each_keeps_a_part_of_every_weight(self, two_processes):
        results = [result["plain"] for result in two_processes]
        assert all(all(result["sharded"]) for result in results)
        assert [result["part"] for result in results] == [1344, 1266]  # of 2610; 33 rows are shared as 17 and 16

    def test_the_optimizer_keeps_a_part_of_its_state(self, two_processes):
        assert all(result["plain"]["state is sharded"] and result["plain"]["optimizer's"] for result in two_processes)

    def test_an_optimizer_that_was_used_before_keeps_its_state(self, assert_same_weights):
        assert_same_weights("used before")

    def test_the_model_keeps_the_names_of_its_weights(self, two_processes):
        assert all(result["blocks"]["same keys"] for result in two_processes)

    def test_each_sample_is_evaluated_once_though_the_numbers_of_batches_differ(self, two_processes):
        assert [result["plain"]["evaluated"] for result in two_processes] == [39, 38]

    def test_an_evaluation_by_hand_may_take_other_numbers_of_batches(self, one_process, two_processes):
        assert two_processes[0]["own backward"]["correct"] == one_process["own backward"]["correct"]


@pytest.mark.distributed
class TestWhatIsWrapped:
    def test_the_classes_that_are_named(self, two_processes):
        assert two_processes[0]["blocks"]["wrapped"] == ["", "blocks.0", "blocks.1"]

    def test_what_a_function_says(self, two_processes):
        assert two_processes[0]["kept after forward"]["wrapped"] == ["", "blocks.0", "blocks.1"]

    def test_nothing_of_a_small_model_by_itself(self, two_processes):
        assert two_processes[0]["plain"]["wrapped"] == [""]

    def test_large_items_of_containers_unless_their_weights_are_tied_to_others(self, one_process):
        assert one_process["auto"]["wrapped"] == ["blocks.0", "blocks.1.0"]

    def test_nothing_found_is_refused(self, two_processes):
        assert "found no part of Network to wrap" in two_processes[0]["refused"]["nothing to wrap"]


@pytest.mark.distributed
class TestGradients:
    @pytest.mark.parametrize("name", ["plain", "by value", "largest"])
    def test_the_norm_is_that_of_all_parts_and_a_plain_number_on_every_process(self, one_process, two_processes, name):
        norms = [result[name]["norm"] for result in two_processes]
        assert norms[0] == norms[1] == pytest.approx(one_process[name]["norm"], abs=1e-6)
        assert all(result[name]["norm is plain"] for result in two_processes)

    def test_parameters_of_no_sharded_model_may_be_clipped_and_stepped_beside_it(
        self, one_process, two_processes, assert_same_weights
    ):
        assert_same_weights("mixed")
        assert two_processes[0]["mixed"]["norm"] == pytest.approx(one_process["mixed"]["norm"], abs=1e-6)

    def test_what_a_failed_run_left_of_a_group_is_dropped(self, one_process, two_processes):
        for result in two_processes:
            assert result["run again"]["norm"] == pytest.approx(one_process["run again"]["norm"], abs=1e-6)

    def test_a_group_that_is_saved_holds_its_gradients_so_far(self, one_process, two_processes, assert_same_weights):
        name = "state within a group"
        assert_same_weights(name)
        for result in two_processes:
            assert result[name]["gradients"] == pytest.approx(one_process[name]["gradients"], abs=1e-6)

    @pytest.mark.parametrize("name", ["adversaries", "called twice", "own backward"])
    def test_other_ways_to_use_the_model_in_a_step(self, assert_same_weights, name):
        assert_same_weights(name)


@pytest.mark.distributed
class TestPrecision:
    @pytest.mark.parametrize("name", ["policy", "autocast"])
    def test_bfloat16_learns_the_same_as_float32_but_for_its_precision(self, one_process, two_processes, name):
        first, second = (result[name] for result in two_processes)
        assert first["weights"] == second["weights"]
        assert first["weights"] == pytest.approx(one_process["plain"]["weights"], abs=0.2)
        assert first["weights"] != pytest.approx(one_process["plain"]["weights"], abs=1e-4)
        assert first["accuracies"][0] > 0.9

    def test_float16_skips_the_same_steps_on_every_process(self, two_processes):
        first, second = (result["scaled"] for result in two_processes)
        assert 0 < first["steps"][1] < 18
        assert first["steps"] == second["steps"]
        assert first["weights"] == second["weights"]

    def test_another_precision_than_that_of_amp_is_refused(self, two_processes):
        told = two_processes[0]["refused"]["precision"]
        assert "AMP() computes in torch.bfloat16, but FullySharded" in told
        assert "in torch.float16: leave AMP out, or give it the same precision" in told


@pytest.mark.distributed
class TestAverages:
    def test_a_copy_of_the_averages_is_whole(self, two_processes):
        assert all(result["blocks"]["copy is plain"] for result in two_processes)

    def test_whole_averages_are_loaded_into_a_sharded_model(self, two_processes):
        for result in two_processes:
            assert set(result["saved"]["weights"]) == {0.5}

    def test_the_weights_are_what_they_were_after_an_evaluation_with_averages(self, two_processes):
        assert two_processes[0]["saved"]["after"] == two_processes[0]["saved"]["begun"]


@pytest.mark.distributed
class TestOtherwise:
    def test_a_part_that_is_wrapped_by_itself_can_be_called(self, one_process, two_processes):
        for result in two_processes:
            ours = result["part called"]["blocks"]
            assert ours == pytest.approx(one_process["part called"]["blocks"], abs=5e-7)

    def test_a_call_of_a_part_that_is_not_is_explained(self, two_processes):
        for result in two_processes:
            assert "called a part of the model that is not wrapped by itself" in result["part called"]["head"]

    def test_all_processes_end_with_the_statistics_of_the_first(self, two_processes):
        first, second = (result["statistics"]["buffers"] for result in two_processes)
        assert first == second

    def test_data_parallel_beside_it_is_refused(self, two_processes):
        assert "are attached for the same model: keep one" in two_processes[0]["refused"]["both"]

    def test_detaching_it_is_refused_once_the_model_is_sharded(self, two_processes):
        assert "has sharded its model, which cannot be undone" in two_processes[0]["refused"]["detached"]
