"""The agent does not wait for other hosts while it looks after its ranks."""

import threading

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from camshaft.launch.agent import _Asked


class TestAQuestionToOtherHosts:
    def test_is_answered_at_once_where_they_answer(self):
        answers = iter([1, 2])
        asked = _Asked(lambda: next(answers), 0, patience=60)
        assert [asked(), asked()] == [1, 2]

    def test_is_answered_as_before_while_they_do_not(self):
        answered = threading.Event()
        asked = _Asked(lambda: answered.wait(60) and 1, 0, patience=0.01)
        assert [asked(), asked()] == [0, 0]
        answered.set()
        asked._thread.join(60)
        assert asked() == 1

    def test_raises_what_they_raise(self):
        def refuse():
            raise RendezvousConnectionError("gone")

        with pytest.raises(RendezvousConnectionError, match="gone"):
            _Asked(refuse, 0, patience=60)()

    def test_that_they_never_answer_means_that_the_connection_is_lost(self):
        answered = threading.Event()
        asked = _Asked(lambda: answered.wait(60), 0, patience=0.01, limit=0.001)
        with pytest.raises(RendezvousConnectionError, match="no answer from the meeting point"):
            asked()
        answered.set()
