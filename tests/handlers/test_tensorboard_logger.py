import importlib.util
import io
import struct
import subprocess
import sys

import pytest
import torch
from ignite.engine import create_supervised_trainer
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from camshaft.engine import Engine, Events
from camshaft.handlers import GradientAccumulation, GradientClipping, OptimizerStep, TensorBoardLogger


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
    logger = TensorBoardLogger(tmp_path, every=1)
    engine = engine_with(logger)

    @engine.on(Events.EPOCH_STARTED)
    def read():
        logger.flush()
        seen.append(len(shown(tmp_path)))

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


# ------------------------------------------------------------------------------------------- more than numbers


def summaries_in(directory):
    """The values that TensorBoard would show, as (tag, step, value), scalars left out."""
    values = []
    for event in events_in(directory):
        if event.session_log.status == SessionLog.START:
            values = [value for value in values if value[1] < event.step]
        values += [
            (value.tag, event.step, value)
            for value in event.summary.value
            if value.WhichOneof("value") != "simple_value"
        ]
    return values


def training(tmp_path, **options):
    """A linear model that learns in six iterations with a logger of histograms, and that logger."""
    model = torch.nn.Linear(3, 2)
    logger = TensorBoardLogger(tmp_path, histograms=model, **options)
    engine = engine_with(
        logger,
        OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.5)),
        step=lambda engine, batch: model(batch).square().mean(),
    )
    return engine, logger, model


def test_histograms_of_weights_and_gradients_are_recorded_every_so_often(tmp_path):
    engine, _, model = training(tmp_path, histograms_every=2)
    engine.run(torch.randn(6, 4, 3))

    found = {(tag, step): value.histo for tag, step, value in summaries_in(tmp_path)}
    tags = ("weights/weight", "weights/bias", "gradients/weight", "gradients/bias")
    assert set(found) == {(tag, step) for tag in tags for step in (2, 4, 6)}
    last = found["weights/weight", 6]
    assert (last.num, sum(last.bucket)) == (6, 6)
    assert last.min == pytest.approx(model.weight.min().item())
    assert last.max == last.bucket_limit[-1] == pytest.approx(model.weight.max().item())
    assert last.sum == pytest.approx(model.weight.sum().item())


def test_gradients_are_those_of_the_optimizer_step_whole_and_clipped(tmp_path):
    engine, _, _ = training(tmp_path, histograms_every=1)
    engine.attach(GradientAccumulation(3), GradientClipping(0.125))
    engine.run(torch.randn(6, 4, 3))

    squares = {}
    for tag, step, value in summaries_in(tmp_path):
        if tag.startswith("gradients/"):
            squares[step] = squares.get(step, 0.0) + value.histo.sum_squares
    assert squares == pytest.approx({3: 0.125**2, 6: 0.125**2}, rel=1e-4)


def test_a_trainer_of_ignite_that_calls_backward_itself_has_histograms_of_gradients_too(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
    TensorBoardLogger(tmp_path, histograms={"net": model}, histograms_every=2).attach(trainer)
    trainer.run([(torch.randn(4, 3), torch.randn(4, 2))] * 2)

    tags = [tag for tag, step, _ in summaries_in(tmp_path) if step == 2]
    assert sorted(tags) == ["gradients/net/bias", "gradients/net/weight", "weights/net/bias", "weights/net/weight"]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_histogram_is_of_what_is_finite(tmp_path, broken):
    logger = TensorBoardLogger(tmp_path)
    engine = engine_with(logger)
    engine.add_event_handler(Events.COMPLETED, lambda: logger.add_histogram("x", torch.tensor([1.0, broken, 3.0])))
    engine.add_event_handler(Events.COMPLETED, lambda: logger.add_histogram("y", torch.tensor([broken])))
    engine.run([0])

    ((tag, _, value),) = summaries_in(tmp_path)
    assert (tag, value.histo.num, value.histo.sum) == ("x", 2, 4.0)


def test_a_picture_is_recorded_with_its_pixels_at_the_iteration_of_the_engine(tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="tensorboardX makes pictures with Pillow")
    logger = TensorBoardLogger(tmp_path)
    engine = engine_with(logger)
    red = torch.zeros(3, 4, 5)
    red[0] = 1.0
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: logger.add_image("red", red))
    engine.run([1, 2, 3])

    ((tag, step, value),) = summaries_in(tmp_path)
    picture = image_module.open(io.BytesIO(value.image.encoded_image_string))
    assert (tag, step, picture.size, picture.getpixel((0, 0))) == ("red", 2, (5, 4), (255, 0, 0))


def test_a_figure_of_matplotlib_is_recorded_as_it_looks(tmp_path):
    figures = pytest.importorskip("matplotlib.figure", reason="there is no figure without matplotlib")
    figure = figures.Figure(figsize=(2, 1), dpi=50)
    logger = TensorBoardLogger(tmp_path)
    logger.add_figure("figure", figure)
    engine_with(logger).run([0])

    ((tag, step, value),) = summaries_in(tmp_path)
    assert (tag, step, value.image.width, value.image.height) == ("figure", 0, 100, 50)


def test_a_picture_of_another_shape_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'flat' has the shape \(7,\)"):
        TensorBoardLogger(tmp_path).add_image("flat", torch.zeros(7))


def test_text_is_recorded(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    engine = engine_with(logger)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: logger.add_text("note", "an *epoch* is over"))
    engine.run([0], max_epochs=2)

    found = [(tag, step, value.tensor.string_val[0]) for tag, step, value in summaries_in(tmp_path)]
    assert found == [("note/text_summary", 1, b"an *epoch* is over"), ("note/text_summary", 2, b"an *epoch* is over")]


def test_a_curve_of_precision_and_recall_tells_a_perfect_classifier(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.add_pr_curve("digits", torch.tensor([0, 1, 0, 1]), torch.tensor([0.1, 0.9, 0.2, 0.8]))
    engine_with(logger).run([0])

    ((_, _, value),) = summaries_in(tmp_path)
    rows, thresholds = (dimension.size for dimension in value.tensor.tensor_shape.dim)
    curve = torch.tensor(list(value.tensor.float_val)).reshape(rows, thresholds)
    precision, recall = curve[4], curve[5]
    assert (precision[64], recall[64]) == (1.0, 1.0)  # at the threshold 0.5


def test_a_curve_with_too_few_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'digits' has 2 labels and 1 scores"):
        TensorBoardLogger(tmp_path).add_pr_curve("digits", [0, 1], [0.5])


def test_the_graph_of_a_model_is_recorded_or_names_what_is_missing(tmp_path):
    logger, model = TensorBoardLogger(tmp_path), torch.nn.Linear(3, 2)
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
            logger.add_graph(model, torch.zeros(1, 3))
        return
    logger.add_graph(model, torch.zeros(1, 3))
    engine_with(logger).run([0])

    assert [b"Linear" in event.graph_def for event in events_in(tmp_path) if event.graph_def] == [True]


def test_parameters_begin_and_end_a_session_of_the_table_hparams_once(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData  # noqa: PLC0415

    logger = TensorBoardLogger(tmp_path, parameters={"lr": 0.5, "model": "mlp", "bias": True, "sizes": (3, 2)})
    engine = engine_with(logger)
    engine.run([0], max_epochs=1)
    engine.run([0], max_epochs=2)

    sessions = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for tag, _, value in summaries_in(tmp_path)
        if tag.startswith("_hparams_/")
    ]
    assert [session.WhichOneof("data") for session in sessions] == [
        "session_start_info",
        "session_end_info",
        "session_end_info",
    ]
    given = sessions[0].session_start_info.hparams
    assert given["lr"].number_value == 0.5
    assert given["model"].string_value == "mlp"
    assert given["bias"].bool_value is True
    assert given["sizes"].string_value == "(3, 2)"


def test_a_resumed_run_shows_no_text_twice_and_misses_none(tmp_path):
    def program(logger):
        engine = engine_with(logger)
        engine.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: logger.add_text("note", f"iteration {engine.state.iteration}"),
        )
        return engine

    logger, kept = TensorBoardLogger(tmp_path), {}
    engine = program(logger)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: kept.update(logger.state_dict()))
    engine.run([1, 2, 3, 4, 5])
    resumed_logger = TensorBoardLogger(tmp_path)
    resumed_logger.load_state_dict(torch_round_trip(kept))
    resumed = program(resumed_logger)

    @resumed.on(Events.STARTED)
    def load(engine):
        engine.state.iteration = 3

    resumed.run([4, 5, 6], epoch_length=6)

    found = [(step, value.tensor.string_val[0].decode()) for _, step, value in summaries_in(tmp_path)]
    assert found == [(step, f"iteration {step}") for step in range(1, 7)]


def torch_round_trip(state_dict):
    """The state as a checkpoint brings it back."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_what_comes_after_the_run_is_recorded_too(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    engine_with(logger).run([1, 2])
    logger.add_text("verdict", "good")

    assert [(tag, step) for tag, step, _ in summaries_in(tmp_path)] == [("verdict/text_summary", 2)]


def test_histograms_of_something_else_than_a_module_are_refused(tmp_path):
    with pytest.raises(TypeError, match="histograms of a module's parameters, not of 3"):
        TensorBoardLogger(tmp_path, histograms={"x": 3})
    with pytest.raises(ValueError, match="every so many iterations, but got 0"):
        TensorBoardLogger(tmp_path, histograms=torch.nn.Linear(1, 1), histograms_every=0)
