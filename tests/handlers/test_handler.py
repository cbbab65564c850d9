import copy
import gc
import itertools
import signal
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from camshaft.engine import Engine, Events, Phase, StepEvents
from camshaft.handlers import Handler, On, OptimizerStep, TimeLimit
from camshaft.handlers.handler import handlers_of


class Notes(Handler):
    """Writes down its name at an event, in a phase."""

    def __init__(self, name, notes, phase=Phase.MEASURE, event=Events.EPOCH_COMPLETED):
        self.name = name
        self.notes = notes
        self.listens = (On(event, phase, "note"),)

    def note(self):
        self.notes.append(self.name)


def do_nothing(engine, batch):
    return None


class TestOrder:
    @pytest.mark.parametrize("order", list(itertools.permutations(["measure", "decide", "report", "save"]))[::5])
    def test_handlers_fire_by_phase_in_whatever_order_they_were_attached(self, engine_of, order):
        notes = []
        engine_of(do_nothing, *(Notes(name, notes, Phase[name.upper()]) for name in order)).run([0])
        assert notes == ["measure", "decide", "report", "save"]

    def test_functions_of_the_user_fire_between_measuring_and_deciding(self):
        notes, engine = [], Engine(do_nothing)
        engine.attach(Notes("decide", notes, Phase.DECIDE))
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: notes.append("user"))
        engine.attach(Notes("measure", notes, Phase.MEASURE)).run([0])
        assert notes == ["measure", "user", "decide"]

    def test_the_order_holds_after_one_of_them_was_detached(self, engine_of):
        notes = []
        save, gone = Notes("save", notes, Phase.SAVE), Notes("gone", notes, Phase.REPORT)
        engine = engine_of(do_nothing, save, gone)
        gone.detach(engine)
        Notes("measure", notes, Phase.MEASURE).attach(engine)
        engine.run([0])
        assert notes == ["measure", "save"]

    def test_handlers_at_moments_of_a_step_need_no_other_handler(self, engine_of):
        notes = []
        engine = engine_of(do_nothing, Notes("forward", notes, event=StepEvents.FORWARD_COMPLETED))
        engine.run([0, 1], max_epochs=1)
        assert notes == ["forward"] * 2


class TestAClassThatIsNotWhole:
    def test_with_a_state_that_it_does_not_take_back_is_refused(self, engine_of):
        class Counter(Handler):
            def state_dict(self):
                return {"count": 1}

        sentence = (
            "Counter has a state_dict but no load_state_dict: a run that goes on would begin it anew. Define both."
        )
        with pytest.raises(TypeError, match=f"^{sentence}$"):
            engine_of(do_nothing, Counter())

    def test_that_takes_back_a_state_it_does_not_give_is_refused(self, engine_of):
        class Counter(Handler):
            def load_state_dict(self, state_dict):
                self.count = state_dict["count"]

        with pytest.raises(TypeError, match="Counter has a load_state_dict but no state_dict"):
            engine_of(do_nothing, Counter())

    def test_may_inherit_one_of_them(self, engine_of):
        class MyTimeLimit(TimeLimit):
            def state_dict(self):
                return super().state_dict()

        limit = MyTimeLimit(60)
        assert handlers_of(engine_of(do_nothing, limit)) == [limit]

    def test_without_the_method_that_it_names_is_refused_before_anything_of_it_is_attached(self, engine_of):
        class Teller(Handler):
            listens = (On(Events.STARTED, Phase.REPORT, "begin"), On(Events.EPOCH_COMPLETED, Phase.REPORT, "tel"))

            def begin(self):
                pass

        engine, teller = engine_of(do_nothing), Teller()
        with pytest.raises(
            AttributeError, match=r"Teller has no method 'tel', which its listens names for EPOCH_COMPL"
        ):
            teller.attach(engine)
        assert handlers_of(engine) == []
        assert not engine.has_event_handler(teller.begin)

    def test_may_give_its_only_subscription_without_a_tuple(self, engine_of):
        class Teller(Handler):
            listens = On(Events.COMPLETED, Phase.REPORT, "tell")
            told = 0

            def tell(self):
                self.told += 1

        teller = Teller()
        engine = engine_of(do_nothing, teller)
        engine.run([0])
        teller.detach(engine)
        engine.run([0], max_epochs=2)
        assert teller.told == 1

    def test_is_told_the_phases_where_it_gives_none(self):
        with pytest.raises(TypeError, match=r"Phase.CHECK, .*, Phase.SAVE, but the phase is 'measure'\."):
            On(Events.STARTED, "measure", "tell")

    def test_is_told_to_name_its_method_where_it_gives_it(self):
        with pytest.raises(TypeError, match="takes the name of a method"):
            On(Events.STARTED, Phase.REPORT, print)

    def test_a_subscription_can_be_copied(self):
        on = On(Events.STARTED, Phase.REPORT, "tell")
        assert copy.deepcopy(on) == on


class TestAttachAndDetach:
    def test_a_handler_can_be_attached_to_several_engines(self, engine_of):
        notes = []
        handler = Notes("note", notes)
        for engine in (engine_of(do_nothing, handler), engine_of(do_nothing, handler)):
            engine.run([0])
        assert notes == ["note"] * 2

    def test_attaching_twice_is_refused(self, engine_of):
        limit = TimeLimit(60)
        engine = engine_of(do_nothing, limit)
        with pytest.raises(ValueError, match=r"TimeLimit\(seconds=60\) is attached to this engine already"):
            limit.attach(engine)
        assert handlers_of(engine) == [limit]

    def test_detaching_what_is_not_attached_is_refused(self, engine_of):
        with pytest.raises(ValueError, match=r"TimeLimit\(seconds=60\) is not attached"):
            TimeLimit(60).detach(engine_of(do_nothing))

    def test_detaching_leaves_no_trace_in_the_engines_events(self, engine_of):
        def add_nothing():
            return None

        notes = []
        engine = engine_of(do_nothing)
        engine.add_event_handler(Events.EPOCH_COMPLETED, add_nothing)
        handler = Notes("note", notes, event=Events.EPOCH_COMPLETED | Events.ITERATION_COMPLETED(every=2))
        handler.attach(engine)
        handler.detach(engine)
        engine.run([0, 1], max_epochs=2)
        assert notes == []
        assert handlers_of(engine) == []
        left = [entry[0] for entries in engine._event_handlers.values() for entry in entries]
        assert left == [add_nothing]

    def test_a_detached_handler_can_be_attached_again(self, engine_of):
        notes = []
        handler = Notes("note", notes)
        engine = engine_of(do_nothing, handler)
        handler.detach(engine)
        handler.attach(engine)
        engine.run([0])
        assert notes == ["note"]

    def test_the_step_is_the_users_own_again_when_the_step_handlers_are_detached(self, engine_of):
        model = nn.Linear(2, 1)
        update = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        engine = engine_of(lambda engine, batch: "whatever it returns", update)
        update.detach(engine)
        assert engine.run([0]).output == "whatever it returns"

    def test_what_cannot_be_attached_is_refused_and_nothing_is_attached(self):
        engine = Engine(do_nothing)
        with pytest.raises(TypeError, match=r"attach\(\) takes handlers.*add_event_handler"):
            engine.attach(TimeLimit(60), print)
        assert engine.handlers == []


class TestContradictions:
    class Opponent(Handler):
        def check(self, engine):
            super().check(engine)
            if any(isinstance(handler, Notes) for handler in handlers_of(engine)):
                raise ValueError("They do not go together.")

    def test_they_are_refused_when_the_run_starts_and_before_anything_else(self, engine_of):
        notes = []
        handlers = [Notes("started", notes, Phase.PREPARE, Events.STARTED), self.Opponent()]
        for order in (handlers, handlers[::-1]):
            engine = engine_of(do_nothing, *order)
            with pytest.raises(ValueError, match="do not go together"):
                engine.run([0])
        assert notes == []

    def test_what_was_detached_before_contradicts_nothing(self, engine_of):
        notes = []
        note = Notes("note", notes)
        engine = engine_of(do_nothing, note, self.Opponent())
        note.detach(engine)
        assert engine.run([0]).iteration == 1

    def test_after_a_refusal_the_engine_runs_when_the_contradiction_is_gone(self):
        note = Notes("note", [])
        engine = Engine(do_nothing).attach(note, self.Opponent())
        with pytest.raises(ValueError, match="do not go together"):
            engine.run([0])
        note.detach(engine)
        assert engine.run([0]).iteration == 1


class TestRepresentation:
    def test_it_is_the_call_that_made_it(self):
        assert repr(Notes("a", [], event=Events.STARTED)) == "Notes(name='a', notes=[], event=Events.STARTED)"
        assert repr(TimeLimit(60)) == "TimeLimit(seconds=60)"

    def test_arguments_that_are_the_default_are_left_out(self):
        assert repr(Notes("a", [], Phase.MEASURE, event=Events.EPOCH_COMPLETED)) == "Notes(name='a', notes=[])"

    def test_a_filtered_event_is_not_taken_for_the_default(self):
        shown = repr(Notes("a", [], event=Events.EPOCH_COMPLETED(every=2)))
        assert shown == "Notes(name='a', notes=[], event=Events.EPOCH_COMPLETED(every=2))"

    def test_several_events_are_shown_as_they_are_written(self):
        events = Events.EPOCH_COMPLETED | StepEvents.OPTIMIZER_STEP_COMPLETED(every=500)
        shown = "event=Events.EPOCH_COMPLETED | StepEvents.OPTIMIZER_STEP_COMPLETED(every=500))"
        assert repr(Notes("a", [], event=events)).endswith(shown)

    def test_a_number_is_not_taken_for_a_default_of_another_type(self):
        class Switch(Handler):
            def __init__(self, on=True):
                pass

        assert [repr(Switch(on)) for on in (True, 1)] == ["Switch()", "Switch(on=1)"]

    def test_arguments_without_a_name_are_shown_without_one_and_those_with_a_free_name_by_it(self):
        class Takes(Handler):
            def __init__(self, directory, /, *things, at=None, **named):
                pass

        shown = repr(Takes(Path("runs/a"), 1, "two", at=3, model=nn.Linear(1, 1), seed=4))
        assert shown == "Takes('runs/a', 1, 'two', at=3, model=Linear, seed=4)"

    def test_large_arguments_are_shown_by_their_class(self):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        assert repr(OptimizerStep(optimizer)) == "OptimizerStep(SGD)"
        assert repr(Notes(torch.zeros(100), [])) == "Notes(name=Tensor, notes=[])"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (Path("runs/digits"), "'runs/digits'"),
            ("x" * 200, repr("x" * 99 + "…")),
            (signal.SIGTERM, "Signals.SIGTERM"),
            ((1,), "(1,)"),
            ((nn.ReLU(), 2), "(ReLU(), 2)"),
            ({"model": nn.Linear(1, 1)}, "{model: Linear}"),
            (do_nothing, "do_nothing"),
            (nn.Linear, "Linear"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_values_are_shown_in_the_fewest_words(self, value, shown):
        assert repr(Notes(value, [])) == f"Notes(name={shown}, notes=[])"

    def test_a_handler_without_arguments_is_shown_by_its_class(self):
        assert repr(Handler()) == "Handler()"

    def test_a_copied_handler_shows_itself_as_the_first(self):
        assert repr(copy.deepcopy(TimeLimit(60))) == "TimeLimit(seconds=60)"

    def test_it_keeps_no_handler_alive(self):
        limit = TimeLimit(60)
        alive = weakref.ref(limit)
        gc.disable()  # without looking for cycles: there is none
        try:
            del limit
            assert alive() is None
        finally:
            gc.enable()

    def test_wrong_arguments_are_told_as_python_does(self):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'seconds'"):
            TimeLimit()


def test_a_handler_has_no_state_unless_it_says_so():
    handler = Notes("note", [])
    assert handler.state_dict() == {}
    handler.load_state_dict({})
    assert handler.produced_at("loss") is None
