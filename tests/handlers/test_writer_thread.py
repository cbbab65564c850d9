import subprocess
import sys
import threading

import pytest

from camshaft.handlers.writer_thread import WriterThread


@pytest.fixture
def thread():
    thread = WriterThread("test")
    yield thread
    thread.end()


def test_calls_are_made_in_order_by_another_thread(thread):
    made = []
    for number in range(1000):
        thread.do(lambda number=number: made.append((number, threading.current_thread().name)))
    thread.wait()

    assert made == [(number, "camshaft-test") for number in range(1000)]


def test_who_adds_to_a_long_queue_waits():
    thread, may_go_on, added = WriterThread("test"), threading.Event(), []
    thread.do(may_go_on.wait)

    def add():
        for number in range(150):
            thread.do(lambda: None)
            added.append(number)

    adding = threading.Thread(target=add)
    adding.start()
    adding.join(0.2)
    assert len(added) <= 101
    may_go_on.set()
    adding.join()
    thread.end()

    assert len(added) == 150


def do_until_it_fails(thread):
    while True:
        thread.do(lambda: None)


@pytest.mark.parametrize("meet", [do_until_it_fails, WriterThread.wait, WriterThread.end], ids=["do", "wait", "end"])
def test_an_error_is_raised_once_where_the_thread_is_next_met_and_what_waited_is_dropped(thread, meet):
    made, may_fail = [], threading.Event()

    def fail():
        may_fail.wait()
        raise OSError("full")

    thread.do(fail)
    thread.do(lambda: made.append("behind"))
    may_fail.set()
    with pytest.raises(OSError, match="full"):
        meet(thread)
    thread.do(lambda: made.append("later"))
    thread.wait()

    assert made == ["later"]


def test_it_ends_when_told_to_and_begins_again_when_needed(thread):
    thread.do(lambda: None)
    thread.end()
    assert "camshaft-test" not in [one.name for one in threading.enumerate()]

    made = []
    thread.do(lambda: made.append(1))
    thread.wait()
    assert made == [1]


def test_a_program_that_ends_without_a_word_loses_nothing():
    program = (
        "import time\n"
        "from camshaft.handlers.writer_thread import WriterThread\n"
        "thread = WriterThread('test')\n"
        "for number in range(3):\n"
        "    thread.do(lambda number=number: (time.sleep(0.1), print(number)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)

    assert ended.stdout.split() == ["0", "1", "2"]
