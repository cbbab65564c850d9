"""What callbacks do on two processes that see different things: they decide alike, and one of them writes."""

from pathlib import Path

import pytest

from tests.handlers.several_processes import results_of

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of(str(Path(__file__).with_name("callbacks_program.py")), 2, tmp_path_factory.mktemp("processes"))


@pytest.fixture
def on_both(results):
    """What both processes found, which must be the same."""

    def found(name):
        first, second = (result[name] for result in results)
        assert first == second
        return first

    return found


def test_when_one_process_stops_all_do(results):
    first, second = (result["early_stopping"] for result in results)
    assert first["epoch"] == second["epoch"] == 2
    assert first["stopped"] == second["stopped"] == 1
    assert (first["reason"], second["reason"]) == ("NOT_STOPPED", "NON_FINITE_METRIC")


def test_a_checkpoint_is_kept_when_all_find_it_better_and_the_first_process_writes_it(results):
    first, second = (result["checkpoints"] for result in results)
    assert first["own directory"] == ["epoch=2.ckpt"]
    assert second["own directory"] == []
    assert first["best"] == second["best"] == "epoch=2.ckpt"
    assert first["directory"] == second["directory"]
    assert first["score"] == second["score"] == 1


def test_a_directory_that_cannot_be_written_to_is_an_error_on_all(on_both):
    assert "is a file. Give another directory" in on_both("unwritable")["error"]


def test_the_first_process_looks_at_the_clock_for_all(on_both):
    assert on_both("timers") == {"of the second": 3, "of the first": 1}


def test_a_spike_on_one_process_ends_training_on_all(on_both):
    assert on_both("spikes") == {"error": "The loss of batch 2 is a spike."}


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_are_the_same_on_all(on_both, kind):
    assert len(on_both("averages")[kind]) == 13


def test_what_is_unfrozen_later_is_trained_alike_on_all(on_both):
    assert on_both("finetuning")["backbone changed"]


def test_each_process_writes_its_share_of_the_predictions(results):
    shares = [result["predictions"]["written"] for result in results]
    assert all(is_right for share in shares for _, is_right in share)
    indices = [index for share in shares for batch, _ in share for index in batch]
    assert sorted(indices) == list(range(24))
