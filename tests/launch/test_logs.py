"""The ranks' output becomes one log: what is shown, what is held back, and what a file keeps."""

import time
from pathlib import Path

import pytest

from camshaft.launch import logs as launch_logs
from camshaft.launch.logs import MergedLogs

TRACEBACK = "Traceback (most recent call last):\n  File 'x', line 1\nValueError: boom\n"


@pytest.fixture
def write():
    """Writes what each (rank, stream) writes, in this order; the streams stay open until the end of the test."""
    opened = {}

    def write_(destination, rank, stream, text):
        which = id(destination), rank, stream
        if which not in opened:
            path = {"out": destination.stdouts, "err": destination.stderrs}[stream][rank]
            opened[which] = Path(path).open("wb", buffering=0)  # noqa: SIM115
        opened[which].write(text.encode())

    yield write_
    for file in opened.values():
        file.close()


def reified(logs, ranks=1):
    return logs.reify({rank: {"RANK": str(rank + 4)} for rank in range(ranks)})  # global ranks that are not the local


def test_a_line_appears_whole_though_it_was_written_in_pieces(write, capfd):
    logs = MergedLogs()
    destination = reified(logs, 2)
    for rank, text in [(0, "a"), (1, "b\n"), (0, "c\n"), (1, "no end")]:
        write(destination, rank, "out", text)
        time.sleep(0.05)
    logs.finish()
    assert capfd.readouterr().out == "[rank 5] b\n[rank 4] ac\n[rank 5] no end\n"


def test_of_a_progress_bar_a_log_that_is_no_terminal_has_the_end(write, capfd):
    logs = MergedLogs()
    write(reified(logs), 0, "err", "\r 10%\r 50%\r100%\nnext\r\n")
    logs.finish()
    assert capfd.readouterr().err == "[rank 4] 100%\n[rank 4] next\n"


def test_a_traceback_is_held_back_with_all_that_follows(write, capfd):
    logs = MergedLogs()
    destination = reified(logs)
    write(destination, 0, "err", "\r 50%[rank4]: Traceback (most recent call last):\n[rank4]:   File 'x', line 1\n")
    write(destination, 0, "err", "[rank4]: ValueError: boom\n")
    write(destination, 0, "out", "meanwhile\n")
    logs.finish()
    assert capfd.readouterr() == ("[rank 4] meanwhile\n", "[rank 4]  50%\n")
    at, text = logs.last_traceback(0)
    assert text == TRACEBACK
    assert at == pytest.approx(time.time(), abs=60)


def test_a_traceback_whose_process_goes_on_is_shown(write, capfd, monkeypatch):
    monkeypatch.setattr(launch_logs, "HELD_BACK", 0.0)
    logs = MergedLogs()
    destination = reified(logs)
    write(destination, 0, "err", TRACEBACK)
    shown = ""
    while shown.count("\n") < 3:
        shown += capfd.readouterr().err
    assert shown == "".join(f"[rank 4] {line}" for line in TRACEBACK.splitlines(keepends=True))
    assert logs.last_traceback(0)[1] == TRACEBACK  # it may have been the end of the process
    write(destination, 0, "err", "but was not\n")
    logs.finish()
    assert logs.last_traceback(0) == (None, "")


def test_a_traceback_of_a_rank_that_ends_well_can_be_shown(write, capfd):
    logs = MergedLogs()
    write(reified(logs), 0, "err", TRACEBACK)
    logs.finish()
    logs.show_last_traceback(0)
    logs.show_last_traceback(0)
    assert capfd.readouterr().err.count("ValueError") == 1


def test_a_rank_writes_all_it_has_into_its_file_after_what_was_there(write, tmp_path, capfd):
    for _ in range(2):
        logs = MergedLogs(str(tmp_path))
        destination = reified(logs)
        write(destination, 0, "err", TRACEBACK)
        time.sleep(0.05)
        write(destination, 0, "out", "\r 10%\r 20%\n")
        logs.finish()
    assert logs.file_of(0) == str(tmp_path / "rank_4.log")
    assert (tmp_path / "rank_4.log").read_bytes().decode() == 2 * (TRACEBACK + "\r 10%\r 20%\n")


def test_more_than_a_pipe_holds_comes_through(write, capfd):
    logs = MergedLogs()
    write(reified(logs), 0, "out", "0123456789\n" * 100_000)
    logs.finish()
    assert capfd.readouterr().out == "[rank 4] 0123456789\n" * 100_000


def open_descriptors():
    return len(list(Path("/dev/fd").iterdir()))


def test_no_file_descriptor_stays_open(tmp_path):
    before = open_descriptors()
    logs = MergedLogs(str(tmp_path))
    reified(logs, 3)
    logs.finish()
    assert open_descriptors() == before
