"""Which rank failed first, what is said of it, and the status that the launcher ends with."""

import signal

import pytest

from camshaft.launch.ending import Ending, exit_status, first_failure, report, waited_in_vain

TRACEBACK = "Traceback (most recent call last):\n  File 'x', line 1\nValueError: boom\n"


def test_the_first_failure_is_the_earliest():
    assert first_failure([Ending(0, 1, time=2.0), Ending(1, 3, time=1.0)]).rank == 1


def test_a_killed_rank_is_the_cause_of_errors_that_were_seen_before():
    assert first_failure([Ending(0, 1, time=1.0), Ending(1, -signal.SIGKILL, time=2.0)]).rank == 1


def test_a_rank_that_aborted_is_not():
    assert first_failure([Ending(0, 1, time=1.0), Ending(1, -signal.SIGABRT, time=2.0)]).rank == 0


@pytest.mark.parametrize(
    ("endings", "status"),
    [
        ([Ending(0, 0, 1.0), Ending(1, 0, 1.0)], 0),
        ([Ending(0, 75, 1.0), Ending(1, 75, 1.0)], 75),
        ([Ending(0, 0, 1.0), Ending(1, 75, 1.0)], 75),
        ([Ending(0, 75, 1.0), Ending(1, 1, 2.0)], 1),
        ([Ending(0, -11, 1.0), Ending(1, -15, 2.0, sent={15})], 139),
        ([Ending(0, -15, 1.0, sent={15}), Ending(1, 0, 2.0, sent={15})], 143),
        ([Ending(0, 130, 1.0, sent={2}), Ending(1, -2, 2.0, sent={2})], 130),
        ([Ending(0, 75, 1.0, sent={15}), Ending(1, -9, 2.0, sent={15, 9}, waited=30.0)], 137),
        ([Ending(0, 5, 1.0, sent={15}), Ending(1, 75, 2.0, sent={15})], 5),
        ([], 1),
    ],
)
def test_the_exit_status(endings, status):
    assert exit_status(endings) == status


def test_nothing_is_said_of_ranks_that_ended_well_or_as_they_were_told():
    assert report([Ending(0, 75, 1.0), Ending(1, -15, 1.0, sent={15}, traceback=TRACEBACK)]) == ""


def test_the_report_names_the_errors_of_the_others_and_ends_with_the_firsts_traceback():
    first = Ending(1, 1, 1.0, traceback=TRACEBACK, log="logs/rank_1.log")
    other = Ending(0, 1, 2.0, traceback=TRACEBACK.replace("boom", "closed"))
    assert report([other, first]) == (
        "[camshaft] Rank 0 failed after it: exit status 1: ValueError: closed\n"
        "[camshaft] Rank 1 was the first to fail: exit status 1\n"
        "[camshaft] All that rank 1 wrote is in logs/rank_1.log\n" + TRACEBACK
    )


def test_of_chained_errors_the_last_is_named():
    chained = TRACEBACK + "\nDuring handling of the above exception, another:\n\n" + TRACEBACK.replace("boom", "last")
    assert Ending(0, 1, 1.0, traceback=chained).error == "ValueError: last"


class TestRanksThatFailedForWantOfAnotherHost:
    LOST = TRACEBACK.replace("ValueError: boom", "RuntimeError: [pair.cc:144] Connection closed by peer [10.0.0.2]:1")

    @pytest.mark.parametrize(
        "error",
        [
            "RuntimeError: [gloo/pair.cc:144] Connection closed by peer [10.0.0.2]:1234",
            "RuntimeError: [gloo/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete",
            "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error",
        ],
    )
    def test_are_known_by_their_error(self, error):
        assert waited_in_vain([Ending(0, 1, 1.0, traceback=TRACEBACK.replace("ValueError: boom", error))])

    def test_are_none_if_one_has_an_error_of_its_own_or_did_not_answer(self):
        lost = Ending(0, 1, 1.0, traceback=self.LOST)
        assert not waited_in_vain([lost, Ending(1, 1, 1.0, traceback=TRACEBACK)])
        assert not waited_in_vain([lost, Ending(1, -9, 1.0, sent={9}, waited=1.0)])
        assert not waited_in_vain([])
