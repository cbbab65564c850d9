import random
import threading

import pytest
import torch

from camshaft.engine import Engine
from camshaft.engine.generators import same_states, states_of
from camshaft.engine.loading_ahead import DataState, LoadedAhead, pause_loading
from camshaft.engine.resumable_data import data_state
from camshaft.handlers import Prefetch


class Numbers:
    """Batches that are drawn from a generator of its own; they are counted."""

    def __init__(self, length=8):
        self.generator = torch.Generator()
        self.length = length
        self.given = 0

    def __iter__(self):
        for _ in range(self.length):
            self.given += 1
            yield torch.rand(1, generator=self.generator).item()


class Walk(Numbers):
    """A loader that can tell its position and go back there."""

    def state_dict(self):
        return {"given": [self.given]}

    def load_state_dict(self, state):
        [self.given] = state["given"]


def ahead_of(data, loaded=0, used=1):
    """A loader of which some batches are used, and some more are loaded."""
    ahead = LoadedAhead(iter(data), data_state(data))
    for _ in range(used):
        next(ahead)
    ahead.load(loaded)
    ahead.pause()
    return ahead


def test_batches_come_in_their_order():
    ahead = LoadedAhead(iter(range(9)), data_state(range(9)))
    taken = []
    for batch in ahead:
        taken.append(batch)
        ahead.load(3)
    assert taken == [*range(9)]


def test_nothing_is_loaded_before_it_is_known_what_loading_draws():
    data = Numbers()
    LoadedAhead(iter(data), data_state(data)).load(2)
    assert data.given == 0


def test_what_draws_from_the_global_generators_is_never_loaded_ahead():
    data = range(9)
    ahead = LoadedAhead((random.random() for _ in data), data_state(data))
    next(ahead)
    ahead.load(2)
    assert ahead.draws is True
    state = random.getstate()
    ahead.pause()
    assert random.getstate() == state


def test_rewound_the_data_is_where_it_was_used_and_afterwards_where_it_is_loaded():
    data, used = Numbers(), Numbers()
    next(iter(used))
    ahead = ahead_of(data, loaded=3)
    loaded = states_of({"": data.generator})
    with ahead.rewound():
        assert same_states(states_of({"": data.generator}), states_of({"": used.generator}))
        assert data.given == 1
    assert same_states(states_of({"": data.generator}), loaded)
    assert data.given == 4


def test_closed_it_stays_where_it_was_used():
    data, used = Numbers(), Numbers()
    next(iter(used))
    left = ahead_of(data, loaded=3).close()
    assert (len(left), data.given) == (3, 1)
    assert torch.rand(1, generator=data.generator).item() == torch.rand(1, generator=used.generator).item()


def test_let_go_it_stays_there_as_well():
    data = Numbers()
    ahead_of(data, loaded=3)
    assert data.given == 1


def test_a_generator_that_someone_has_seeded_meanwhile_stays_so():
    data = Numbers()
    ahead = ahead_of(data, loaded=3)
    data.generator.manual_seed(5)
    ahead.close()
    assert torch.rand(1, generator=data.generator) == torch.rand(1, generator=torch.Generator().manual_seed(5))


def test_the_position_of_a_loader_is_that_of_the_batch_used_last():
    ahead = ahead_of(Walk(), loaded=3)
    assert ahead.position == {"given": [1]}
    next(ahead)
    assert ahead.position == {"given": [2]}


def test_a_loader_tells_its_position_itself_while_nothing_is_loaded_ahead():
    assert ahead_of(Walk()).position is None


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_end_comes_after_the_last_batch_however_early_it_was_found(length):
    ahead = ahead_of(Numbers(length), loaded=3)
    assert len(list(ahead)) == length - 1
    assert list(ahead) == []


def test_an_error_comes_in_its_turn_and_what_is_behind_it_is_not_loaded():
    def batches():
        yield from (1, 2, 3)
        raise OSError("the fourth")

    ahead = LoadedAhead(batches(), data_state([]))
    assert next(ahead) == 1
    ahead.load(5)
    assert [next(ahead), next(ahead)] == [2, 3]
    with pytest.raises(OSError, match="the fourth"):
        next(ahead)


def test_paused_it_gives_what_it_has_and_then_goes_on():
    ahead = ahead_of(range(6), loaded=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camshaft-prefetch")]
    assert [next(ahead), next(ahead), next(ahead)] == [1, 2, 3]


def test_a_batch_is_moved_in_the_background_and_received_where_it_is_used():
    threads = []

    def move(batch):
        threads.append(threading.current_thread().name)
        return batch + 100, lambda: threads.append(threading.current_thread().name)

    ahead = LoadedAhead(iter(range(5)), DataState({}, dict, lambda numbers: None), move)
    next(ahead)
    ahead.load(1)
    assert next(ahead) == 101
    assert threads == ["camshaft-prefetch_0", threading.current_thread().name]


def test_an_engine_whose_loading_is_paused_takes_the_same_batches():
    seen = []
    engine = Engine(lambda engine, batch: (seen.append(batch), pause_loading(engine))).attach(Prefetch())
    engine.run([0, 1, 2, 3, 4])
    assert seen == [0, 1, 2, 3, 4]
