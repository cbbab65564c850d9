import json
import shutil
from time import sleep

import pytest
import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine import Engine, Events, StepEvents
from camshaft.engine.overview import describe_function
from camshaft.handlers import AMP, Evaluate, GradientClipping, Handler, OptimizerStep, Profiler
from camshaft.handlers.profiler import DATA, REST, _length_of_union, _Spent
from tests.ranks import values_of_ranks

BATCHES = [torch.ones(2, 3)] * 6


class Training:
    """A model, a step that returns its loss, and a step that does everything itself."""

    def __init__(self):
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def loss(self, engine, batch):
        return self.model(batch).square().mean()

    def whole_step(self, engine, batch):
        self.optimizer.zero_grad()
        loss = self.loss(engine, batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()


@pytest.fixture
def training():
    return Training()


@pytest.fixture
def profiler(tmp_path):
    """A profiler that records iterations 3 and 4."""
    return Profiler(tmp_path, wait=1, warmup=1, active=2)


def note(engine):
    """A function that is listed by its name."""


def pause(engine):
    """Another, which takes its time."""
    sleep(0.02)


def subscribers_of(engine):
    """All that is called, and at which event, with the function that is called behind a filter."""
    if isinstance(engine, Engine):
        lists = engine._event_handlers.items()
        return [(event, one.function) for event, all_of in lists for one in (*all_of.prompt, *all_of.late)]
    return [(event, entry[0]) for event, entries in engine._event_handlers.items() for entry in entries]


class Trace:
    """What a trace file holds: its ranges, and which range or operator is in which."""

    def __init__(self, path):
        events = json.loads(path.read_text())["traceEvents"]
        self.events = [event for event in events if event.get("cat") in {"user_annotation", "cpu_op"}]
        self.ranges = [event for event in self.events if event["cat"] == "user_annotation"]
        self.names = {event["name"] for event in self.ranges}

    def around(self, name):
        """The ranges around the first event of this name, outermost first."""
        inner = min((event for event in self.events if event["name"] == name), key=lambda event: event["ts"])
        begin, end = inner["ts"], inner["ts"] + inner["dur"]
        outer = [one for one in self.ranges if one is not inner and one["ts"] <= begin <= end <= one["ts"] + one["dur"]]
        return [one["name"] for one in sorted(outer, key=lambda one: (one["ts"], -one["dur"]))]

    def seconds(self, name):
        return sum(event["dur"] for event in self.ranges if event["name"] == name) / 1e6


class TestTrace:
    @pytest.fixture
    def trace(self, engine_of, training, profiler):
        handlers = OptimizerStep(training.optimizer), GradientClipping(1.0), profiler
        engine = engine_of(training.loss, *handlers)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), note)
        engine.run(BATCHES)
        (path,) = profiler.traces
        return Trace(path)

    def test_is_named_after_the_iterations_it_holds(self, trace, profiler, tmp_path):
        assert profiler.traces == [tmp_path / "iterations=3-4.json"]
        assert {name for name in trace.names if name.startswith("iteration ")} == {"iteration 3", "iteration 4"}

    @pytest.mark.parametrize("part", ["data loading", "step", "forward", "backward", "optimizer step"])
    def test_names_the_parts_of_each_iteration(self, trace, part):
        assert [event["name"] for event in trace.ranges].count(part) == 2

    def test_names_events(self, trace):
        assert {event.name for event in StepEvents} < trace.names
        assert {"GET_BATCH_STARTED", "GET_BATCH_COMPLETED", "ITERATION_STARTED", "ITERATION_COMPLETED"} < trace.names

    def test_names_each_handler_within_its_event(self, trace):
        clipping = "GradientClipping(max_norm=1.0).clip"
        assert trace.around(clipping)[-2:] == ["step", "OPTIMIZER_STEP_STARTED"]
        assert trace.around("note")[-1] == "ITERATION_COMPLETED"

    def test_names_a_handler_only_where_its_filter_lets_it_fire(self, trace, engine_class):
        times = [event["name"] for event in trace.ranges].count("note")
        assert times == 1 if engine_class is Engine else times == 2  # Ignite calls its filter, which is in the range

    def test_has_operators_within_the_part_of_the_step_that_calls_them(self, trace):
        assert trace.around("aten::linear")[1:] == ["iteration 3", "step", "forward"]
        assert trace.around("aten::mm")[1:] == ["iteration 3", "step", "backward"]
        assert trace.around("Optimizer.step#SGD.step")[1:] == ["iteration 3", "step", "optimizer step"]

    def test_has_ranges_that_never_cross(self, trace):
        spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in trace.ranges)
        for begin, end in spans:
            assert not any(begin < other_begin < end < other_end for other_begin, other_end in spans)


class TestTable:
    def test_adds_up_to_the_whole(self, engine_of, training, profiler):
        engine_of(training.loss, OptimizerStep(training.optimizer), profiler).run(BATCHES)
        assert sum(profiler.shares.values()) == pytest.approx(1)
        assert all(share >= 0 for share in profiler.shares.values())

    def test_has_the_parts_in_their_order_then_the_handlers_by_their_time_then_the_rest(
        self, engine_of, training, profiler
    ):
        engine = engine_of(training.loss, OptimizerStep(training.optimizer), profiler)
        engine.add_event_handler(Events.ITERATION_COMPLETED, note)
        engine.add_event_handler(Events.ITERATION_COMPLETED, pause)
        engine.run(BATCHES)
        parts = ["data loading", "forward", "backward", "optimizer step", "step"]
        assert list(profiler.shares) == [*parts, "pause", "note", REST]
        lines = profiler.table().splitlines()
        assert lines[0].startswith("iterations 3 to 4: ")
        assert [line.split("  ")[0] for line in lines[2:]] == list(profiler.shares)

    def test_agrees_with_the_trace(self, engine_of, training, profiler):
        engine = engine_of(training.loss, OptimizerStep(training.optimizer), profiler)
        engine.add_event_handler(Events.ITERATION_COMPLETED, note)
        engine.run(BATCHES)
        trace, seconds = Trace(profiler.traces[0]), profiler._spent.seconds
        assert seconds["data loading"] == pytest.approx(trace.seconds("data loading"), abs=1e-6)
        assert seconds["note"] == pytest.approx(trace.seconds("note"), abs=1e-6)
        whole = sum(event["dur"] for event in trace.ranges if event["name"].startswith("ProfilerStep")) / 1e6
        assert seconds.total() == pytest.approx(whole, abs=1e-6)

    def test_counts_a_handlers_time_once_where_it_has_parts_within(self, engine_of, training, profiler):
        evaluator = engine_of(lambda engine, batch: training.model(batch))
        evaluate = Evaluate(evaluator, BATCHES, at=Events.ITERATION_COMPLETED)
        engine_of(training.loss, OptimizerStep(training.optimizer), evaluate, profiler).run(BATCHES)
        (name,) = [row for row in profiler.shares if row.startswith("Evaluate")]
        trace = Trace(profiler.traces[0])
        assert profiler._spent.seconds[name] == pytest.approx(trace.seconds(name), abs=1e-6)

    def test_tells_backward_and_optimizer_step_apart_in_a_step_that_does_its_own(self, engine_of, training, profiler):
        engine_of(training.whole_step, profiler).run(BATCHES)
        assert list(profiler.shares) == ["data loading", "backward", "optimizer step", "step", REST]
        assert all(profiler.shares.values())

    def test_does_the_same_within_the_surroundings_of_amp(self, engine_of, training, profiler):
        engine_of(training.whole_step, AMP("bf16"), profiler).run(BATCHES)
        assert list(profiler.shares)[:5] == ["data loading", "forward", "backward", "optimizer step", "step"]
        assert all(list(profiler.shares.values())[:5])

    def test_keeps_the_method_of_a_handler_whose_name_is_long(self, engine_of, training, profiler):
        class Handles(Handler):
            def __repr__(self):
                return "Handles(" + "x" * 200 + ")"

            def attend(self, engine):
                pass

        handler = Handles()
        engine = engine_of(training.loss, handler, profiler)
        engine.add_event_handler(Events.ITERATION_COMPLETED, handler.attend)
        engine.run(BATCHES)
        assert max(map(len, profiler.table().splitlines())) < 120
        assert "x).attend" in profiler.table()

    def test_is_printed_at_the_end(self, engine_of, training, profiler, capsys):
        engine_of(training.loss, profiler).run(BATCHES)
        assert capsys.readouterr().out == profiler.table() + "\n"

    def test_says_before_a_run_that_there_is_nothing(self, profiler):
        assert profiler.table() == "Profiler has recorded nothing yet."
        assert profiler.shares == {}
        assert profiler.hints == []


class TestHints:
    def test_tells_what_to_do_about_slow_data_loading(self, engine_of, training, profiler):
        def slow():
            for batch in BATCHES:
                sleep(0.05)
                yield batch

        engine_of(training.loss, profiler).run(slow(), epoch_length=6)
        (hint,) = profiler.hints
        assert hint.startswith(f"Data loading takes {profiler.shares[DATA]:.0%} of the time: attach Prefetch")
        assert profiler.table().endswith(hint)

    def test_says_nothing_where_the_step_takes_the_time(self, engine_of, profiler):
        engine_of(lambda engine, batch: sleep(0.05), profiler).run(BATCHES)
        assert profiler.hints == []

    def test_tells_which_operator_waits_for_a_device_that_idles(self):
        spent = self.spent_waiting(seconds=5.0, busy=2.0)
        (hint,) = spent.hints()
        assert hint.startswith(
            "aten::item waits for the device 3.0 times an iteration, 50% of the time, and the device has work for "
            "20%: keep values such as the loss on the device"
        )

    def test_says_nothing_of_waits_for_a_device_that_is_busy_all_the_time(self):
        assert self.spent_waiting(seconds=5.0, busy=9.5).hints() == []

    def test_says_nothing_of_waits_that_take_no_time(self):
        assert self.spent_waiting(seconds=0.1, busy=2.0).hints() == []

    def spent_waiting(self, seconds, busy):
        spent = _Spent()
        spent.seconds.update({"forward": 10.0})
        spent.iterations, spent.busy = 2, busy
        spent.waits["aten::item"], spent.waited["aten::item"] = 6, seconds
        return spent

    def test_counts_a_device_busy_where_its_kernels_overlap_only_once(self):
        assert _length_of_union([(4.0, 5.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.8)]) == 4.0
        assert _length_of_union([]) == 0

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
    def test_finds_the_waits_for_a_real_device(self, engine_of, profiler):
        matrix = torch.ones(2048, 2048, device="cuda")

        def step(engine, batch):
            sleep(0.001)  # the device idles
            return [(matrix @ matrix).sum().item() for _ in range(3)]

        engine_of(step, profiler).run(BATCHES)
        assert profiler._spent.waits["aten::item"] == 3 * 2
        assert 0 < profiler._spent.busy < profiler._spent.seconds.total()


class TestWindows:
    @pytest.mark.parametrize(
        ("schedule", "recorded"),
        [
            ({"wait": 0, "warmup": 1, "active": 1}, ["2-2"]),
            ({"wait": 3, "warmup": 2, "active": 4}, ["6-9"]),
            ({"wait": 2, "warmup": 1, "active": 1, "repeat": 2}, ["4-4", "8-8"]),
            ({"wait": 2, "warmup": 1, "active": 2, "repeat": 0}, ["4-5", "9-10", "14-14"]),
            ({"wait": 2, "warmup": 1, "active": 6, "repeat": 0}, ["4-9", "13-14"]),  # the end cuts the last
            ({"wait": 0, "warmup": 1, "active": 6, "repeat": 0}, ["2-7", "9-14"]),
        ],
        ids=lambda value: ",".join(map(str, value.values() if isinstance(value, dict) else value)),
    )
    def test_follow_the_schedule_across_epochs(self, engine_of, training, tmp_path, schedule, recorded):
        profiler = Profiler(tmp_path, **schedule)
        engine_of(training.loss, profiler).run(BATCHES + BATCHES[:1], max_epochs=2)
        assert [trace.name for trace in profiler.traces] == [f"iterations={window}.json" for window in recorded]

    def test_count_from_where_a_resumed_run_begins(self, engine_of, training, profiler):
        engine = engine_of(training.loss, profiler)
        engine.load_state_dict({"iteration": 6, "epoch_length": 6, "max_epochs": 2})
        engine.run(BATCHES)
        assert [trace.name for trace in profiler.traces] == ["iterations=9-10.json"]

    def test_begin_anew_in_a_new_run(self, engine_of, training, profiler):
        engine = engine_of(training.loss, profiler)
        engine.run(BATCHES)
        engine.run(BATCHES)
        assert [trace.name for trace in profiler.traces] == ["iterations=3-4.json"]
        assert profiler.table().startswith("iterations 3 to 4: ")

    def test_leave_a_run_without_data_its_parts(self, engine_of, profiler):
        engine_of(lambda engine, batch: torch.ones(1), profiler).run(max_epochs=1, epoch_length=6)
        assert Trace(profiler.traces[0]).names >= {"iteration 3", "iteration 4", "step"}

    def test_that_never_come_are_told(self, engine_of, training, profiler, caplog):
        engine_of(training.loss, profiler).run(BATCHES[:2])
        assert caplog.messages[-1].endswith(
            "has recorded nothing: the run ended at iteration 2, before its first window. Make wait smaller."
        )
        assert profiler.traces == []


class TestOutsideOfItsWindows:
    def test_it_is_not_in_the_way_of_an_iteration(self, engine_of, training, tmp_path):
        engine = engine_of(training.loss, Profiler(tmp_path, wait=2, warmup=1, active=1))
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=1), note)
        engine.add_event_handler(Events.ITERATION_STARTED(once=2), note)
        before, seen = subscribers_of(engine), {}
        step = engine._process_function

        def look(engine, batch):
            seen[engine.state.iteration] = subscribers_of(engine)
            return step(engine, batch)

        engine._process_function = look
        engine.run(BATCHES)
        assert len(seen[1]) == len(seen[2]) == len(before) + 1  # it waits
        assert len(set(map(repr, seen[4]))) >= len(before)
        assert not {id(function) for _, function in seen[4]} & {id(note)}  # it is called in a range
        assert sorted(map(repr, seen[5])) == sorted(map(repr, before))
        assert subscribers_of(engine) == before
        assert "_fire_event" not in vars(engine)

    def test_it_leaves_the_overview_of_an_engine_as_it_was(self, training, profiler):
        engine = Engine(training.loss).attach(profiler, OptimizerStep(training.optimizer), GradientClipping(1.0))
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), note)
        before = str(engine)
        engine.run(BATCHES)

        def rows(text):
            return [line.split()[:-1] if line.endswith("%") else line.split() for line in text.splitlines()[3:]]

        assert rows(str(engine)) == rows(before)

    def test_a_run_ends_in_the_same_bits(self, engine_of, profiler):
        def weights(*handlers):
            torch.manual_seed(0)
            training = Training()
            engine_of(training.loss, OptimizerStep(training.optimizer), *handlers).run(BATCHES)
            return training.model.weight

        assert torch.equal(weights(profiler), weights())

    def test_detached_within_a_window_it_is_gone(self, engine_of, training, profiler):
        engine = engine_of(training.loss, profiler)

        @engine.on(Events.ITERATION_STARTED)
        def detach():
            if engine.state.iteration == 4:
                profiler.detach(engine)

        engine.run(BATCHES)
        assert {function.__name__ for _, function in subscribers_of(engine)} == {"detach", "raise_again"}
        assert "_fire_event" not in vars(engine)
        assert [trace.name for trace in profiler.traces] == ["iterations=3-4.json"]


class TestWithinAWindow:
    def test_a_handler_can_be_removed(self, engine_of, training, profiler):
        calls = []
        engine = engine_of(training.loss, profiler)
        handle = engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: calls.append(1))
        engine.add_event_handler(Events.ITERATION_STARTED(once=4), handle.remove)
        engine.run(BATCHES)
        assert len(calls) == 3

    def test_a_handler_can_be_added(self, engine_of, training, profiler):
        calls = []
        engine = engine_of(training.loss, profiler)
        engine.add_event_handler(
            Events.ITERATION_STARTED(once=4),
            lambda: engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: calls.append(1)),
        )
        engine.run(BATCHES)
        assert len(calls) == 3

    @pytest.mark.parametrize("error", [ValueError("it broke"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
    def test_what_was_recorded_before_an_error_is_written_and_printed(
        self, engine_of, training, profiler, error, capsys
    ):
        engine = engine_of(training.loss, profiler)

        @engine.on(Events.ITERATION_STARTED)
        def fail():
            if engine.state.iteration == 3:
                raise error

        with pytest.raises(type(error)):
            engine.run(BATCHES)
        assert [trace.name for trace in profiler.traces] == ["iterations=3-3.json"]
        assert Trace(profiler.traces[0]).around(describe_function(fail))[-2:] == ["iteration 3", "ITERATION_STARTED"]
        assert capsys.readouterr().out == profiler.table() + "\n"
        assert "_fire_event" not in vars(engine)

    def test_the_run_can_be_interrupted_and_goes_on(self, engine_of, training, profiler):
        engine = engine_of(training.loss, profiler)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.interrupt())
        engine.run(BATCHES)
        assert [trace.name for trace in profiler.traces] == ["iterations=3-3.json"]
        assert engine.run(BATCHES).iteration == 6

    def test_the_run_can_be_interrupted_and_given_up(self, engine_of, training, tmp_path):
        profiler = Profiler(tmp_path, wait=0, warmup=1, active=2, repeat=0)
        engine = engine_of(training.loss, profiler)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.interrupt())
        engine.run(BATCHES)
        assert "_fire_event" not in vars(engine)
        engine.state.max_epochs = None
        engine.run(BATCHES, max_epochs=1)
        assert len(profiler.traces) == len(set(profiler.traces))

    def test_the_run_can_be_terminated_without_its_completion(self, engine_of, training, tmp_path):
        profiler = Profiler(tmp_path, wait=0, warmup=1, active=2, repeat=0)
        engine = engine_of(training.loss, profiler)
        before = subscribers_of(engine)
        last_but_one = Events.ITERATION_COMPLETED(once=5)
        handle = engine.add_event_handler(last_but_one, lambda engine: engine.terminate(skip_completed=True))
        engine.run(BATCHES)
        handle.remove()
        assert [trace.name for trace in profiler.traces] == ["iterations=2-3.json", "iterations=5-5.json"]
        assert subscribers_of(engine) == before

    def test_an_epoch_can_be_terminated(self, engine_of, training, profiler):
        engine = engine_of(training.loss, profiler)
        engine.add_event_handler(Events.ITERATION_STARTED(once=3), lambda engine: engine.terminate_epoch())
        engine.add_event_handler(Events.EPOCH_COMPLETED, note)
        engine.run(BATCHES, max_epochs=2)
        trace = Trace(profiler.traces[0])
        assert trace.around("EPOCH_COMPLETED")[1:] == []  # outside of the iteration that was left
        assert {"iteration 3", "iteration 4", "iteration 5"} <= trace.names

    def test_a_trace_that_cannot_be_written_does_not_end_the_run(self, engine_of, training, profiler, tmp_path):
        engine = engine_of(training.loss, profiler)
        engine.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: shutil.rmtree(tmp_path))
        with pytest.warns(UserWarning, match=r"The trace .*iterations=3-4.json could not be written"):
            assert engine.run(BATCHES).iteration == 6
        assert profiler.traces == []
        assert sum(profiler.shares.values()) == pytest.approx(1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "least"),
        [({"wait": -1}, 0), ({"warmup": 0}, 1), ({"active": 0}, 1), ({"active": 1.5}, 1), ({"repeat": -1}, 0)],
        ids=str,
    )
    def test_numbers_that_cannot_be(self, tmp_path, arguments, least):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f"{name} is a whole number of at least {least}, but got {value}"):
            Profiler(tmp_path, **arguments)

    def test_a_second_one(self, engine_of, training, tmp_path):
        with pytest.raises(ValueError, match="2 Profiler handlers are attached to one engine"):
            engine_of(training.loss, Profiler(tmp_path), Profiler(tmp_path)).run(BATCHES)


def profiled_by_each(directory):
    """The names of the traces of this process and, if it printed one, the table."""
    printed = []
    for engine_class in (Engine, IgniteEngine):
        profiler = Profiler(directory / engine_class.__module__, wait=1, warmup=1, active=2)
        engine = engine_class(Training().loss)
        profiler.attach(engine)
        engine.run(BATCHES)
        printed.append([trace.name for trace in profiler.traces if trace.exists()])
    return printed


@pytest.mark.distributed
def test_each_of_several_processes_writes_its_trace_and_the_first_prints(tmp_path, capfd):
    first, second = values_of_ranks(profiled_by_each, tmp_path)
    assert first == [["iterations=3-4,rank=0.json"]] * 2
    assert second == [["iterations=3-4,rank=1.json"]] * 2
    assert capfd.readouterr().out.count("data loading") == 2
