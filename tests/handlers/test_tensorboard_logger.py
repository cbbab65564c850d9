import struct
import subprocess
import sys

import pytest
import torch
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from camshaft.engine import Engine, Events
from camshaft.handlers import TensorBoardLogger


def engine_with(*handlers, engine_class=Engine, step=None):
    engine = engine_class(step or (lambda engine, batch: torch.tensor(float(batch))))
    for handler in handlers:
        handler.attach(engine)
    return engine


def masked(checksum):
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_in(directory):
    """All events of a directory in the order in which TensorBoard reads them, each record's checksums verified."""
    for path in sorted(directory.glob("*.tfevents.*")):
        content = path.read_bytes()
        while content:
            length, header_checksum = struct.unpack("<QI", content[:12])
            data = content[12 : 12 + length]
            assert header_checksum == masked(crc32c(content[:8]))
            assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked(crc32c(data)),)
            content = content[16 + length :]
            event = Event()
            event.ParseFromString(data)
            yield event


def shown(directory):
    """The scalars that TensorBoard shows: after the start of a session, those of its step and later ones are void."""
    points = []
    for event in events_in(directory):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[1] < event.step]
        points += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return points


def test_scalars_are_shown_at_their_iterations(tmp_path, engine_class):
    engine_with(TensorBoardLogger(tmp_path, every=2), engine_class=engine_class).run([1, 2, 3, 4])

    assert shown(tmp_path) == [("loss", 2, 2.0), ("loss", 4, 4.0)]


def test_tags_are_the_names_of_the_values_even_with_spaces(tmp_path):
    def step(engine, batch):
        engine.state.metrics["val accuracy"] = 0.5
        return {"loss": 0.25, "aux/loss": 2.0}

    engine_with(TensorBoardLogger(tmp_path, every=1), step=step).run([0])

    assert sorted(shown(tmp_path)) == [("aux/loss", 1, 2.0), ("loss", 1, 0.25), ("val accuracy", 1, 0.5)]


def test_a_record_has_the_time_of_its_iteration_not_of_its_writing(tmp_path):
    engine = engine_with(TensorBoardLogger(tmp_path, every=1))
    engine.run([1, 2])

    times = [event.wall_time for event in events_in(tmp_path) if event.summary.value]
    assert times[0] < times[1]


def test_the_directory_is_made_when_the_run_starts_and_not_before(tmp_path):
    engine = engine_with(TensorBoardLogger(tmp_path / "runs" / "one", every=1))
    assert list(tmp_path.iterdir()) == []

    engine.run([1])
    assert shown(tmp_path / "runs" / "one") == [("loss", 1, 1.0)]


def test_the_end_of_an_epoch_can_be_read_while_the_run_goes_on(tmp_path):
    seen = []
    engine = engine_with(TensorBoardLogger(tmp_path, every=1))
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(len(shown(tmp_path))))
    engine.run([1, 2], max_epochs=2)

    assert seen == [0, 2]


def test_an_error_loses_no_record(tmp_path, engine_class):
    def step(engine, batch):
        return torch.tensor(1.0 / batch)

    with pytest.raises(ZeroDivisionError):
        engine_with(TensorBoardLogger(tmp_path, every=1), engine_class=engine_class, step=step).run([1, 2, 0])

    assert shown(tmp_path) == [("loss", 1, 1.0), ("loss", 2, 0.5)]


def test_the_next_run_on_the_same_logger_appends(tmp_path):
    engine = engine_with(TensorBoardLogger(tmp_path, every=1))
    engine.run([1, 2], max_epochs=1)
    engine.run([1, 2], max_epochs=2)

    assert [step for _, step, _ in shown(tmp_path)] == [1, 2, 3, 4]


def test_a_new_run_hides_an_earlier_one_in_its_directory(tmp_path):
    engine_with(TensorBoardLogger(tmp_path, every=1)).run([1, 2, 3])
    engine_with(TensorBoardLogger(tmp_path, every=1)).run([5, 6])

    assert shown(tmp_path) == [("loss", 1, 5.0), ("loss", 2, 6.0)]


def test_a_resumed_run_shows_no_iteration_twice_and_misses_none(tmp_path):
    logger = TensorBoardLogger(tmp_path, every=1)
    engine = engine_with(logger)
    kept = {}

    @engine.on(Events.ITERATION_STARTED)
    def keep_and_die(engine):
        if engine.state.iteration == 5:
            kept.update(logger=logger.state_dict(), engine={**engine.state_dict(), "iteration": 4})
        if engine.state.iteration == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run([1, 2, 3, 4], max_epochs=2)
    assert [step for _, step, _ in shown(tmp_path)] == [1, 2, 3, 4, 5, 6]

    resumed_logger = TensorBoardLogger(tmp_path, every=1)
    resumed_logger.load_state_dict(kept["logger"])
    resumed = engine_with(resumed_logger)
    resumed.load_state_dict(kept["engine"])
    resumed.run([1, 2, 3, 4], max_epochs=2)

    assert [step for _, step, _ in shown(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_an_iteration_brought_after_its_checkpoint_is_not_shown_twice_either(tmp_path):
    def program(logger):
        engine = engine_with(logger)
        engine.add_event_handler(Events.COMPLETED, lambda engine: engine.state.metrics.update(test_loss=0.5))
        return engine

    logger, kept = TensorBoardLogger(tmp_path, every=1), {}
    engine = program(logger)
    engine.add_event_handler(
        Events.COMPLETED, lambda: kept.update(logger=logger.state_dict(), engine=engine.state_dict())
    )
    engine.run([1, 2])
    resumed_logger = TensorBoardLogger(tmp_path, every=1)
    resumed_logger.load_state_dict(kept["logger"])
    resumed = program(resumed_logger)

    @resumed.on(Events.STARTED)
    def load(engine):
        engine.state.iteration, engine.state.epoch = 2, 1

    resumed.run([1, 2])

    assert shown(tmp_path) == [("loss", 1, 1.0), ("loss", 2, 2.0), ("test_loss", 2, 0.5)]


def test_a_directory_that_cannot_be_made_is_one_sentence_at_the_start(tmp_path, engine_class):
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(OSError, match=r"TensorBoardLogger cannot write to '.*runs/one' \(Not a directory\)"):
        engine_with(TensorBoardLogger(tmp_path / "runs" / "one"), engine_class=engine_class).run([0])


def test_tensorboardx_is_imported_by_a_run_and_not_by_the_handler(tmp_path):
    program = (
        "import sys\n"
        "from camshaft.handlers import TensorBoardLogger\n"
        f"logger = TensorBoardLogger({str(tmp_path)!r})\n"
        "print('tensorboardX' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert finished.stdout == "False\n"
