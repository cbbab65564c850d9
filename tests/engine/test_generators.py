import io
import random

import numpy as np
import pytest
import torch

from camshaft.engine.generators import (
    generator_states,
    generators_kept,
    generators_within,
    is_generator,
    seed_generators,
    set_generator_states,
)


def global_numbers():
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]  # noqa: NPY002


OWN = {
    "python": (lambda: random.Random(5), lambda generator: generator.gauss(0, 1)),
    "torch": (torch.Generator, lambda generator: torch.rand(1, generator=generator).item()),
    "RandomState": (lambda: np.random.RandomState(5), lambda generator: generator.standard_normal()),
    "PCG64": (lambda: np.random.default_rng(5), lambda generator: generator.standard_normal()),
    "MT19937": (lambda: np.random.Generator(np.random.MT19937(5)), lambda generator: generator.random()),
    "Philox": (lambda: np.random.Generator(np.random.Philox(5)), lambda generator: generator.random()),
    "SFC64": (lambda: np.random.Generator(np.random.SFC64(5)), lambda generator: generator.random()),
}


def through_a_file(states):
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_global_generators_go_on_where_they_were():
    global_numbers()
    states = through_a_file(generator_states())
    numbers = global_numbers()
    global_numbers()
    set_generator_states(states)
    assert global_numbers() == numbers


@pytest.mark.parametrize(("make", "draw"), OWN.values(), ids=OWN)
def test_so_does_one_of_its_own(make, draw):
    generator = make()
    draw(generator)
    states = through_a_file(generator_states({"own": generator}))
    numbers = [draw(generator) for _ in range(3)]
    other = make()
    set_generator_states(states, {"own": other, "unknown": make()})
    assert [draw(other) for _ in range(3)] == numbers


def test_numbers_drawn_within_generators_kept_leave_no_trace():
    own = torch.Generator()
    states = generator_states()
    with generators_kept({"own": own}):
        global_numbers()
        inside = torch.rand(1, generator=own)
    assert torch.rand(1, generator=own) == inside
    after = global_numbers()
    set_generator_states(states)
    assert global_numbers() == after


def test_an_error_within_leaves_none_either():
    states = generator_states()
    with pytest.raises(ZeroDivisionError), generators_kept():
        1 / (random.random() * 0)
    assert torch.equal(generator_states()["python"]["words"], states["python"]["words"])


@pytest.mark.parametrize(("make", "draw"), OWN.values(), ids=OWN)
def test_a_seed_makes_the_same_numbers_again_and_another_one_others(make, draw):
    generator = make()

    def numbers(seed):
        seed_generators(seed, {"own": generator})
        return [*global_numbers(), draw(generator)]

    first = numbers(2**61)
    assert numbers(2**61) == first
    assert not set(numbers(2**61 + 1)) & set(first)


def test_generators_of_one_kind_are_not_seeded_alike():
    one, other = torch.Generator(), torch.Generator()
    seed_generators(3, {"one": one, "other": other})
    assert len({torch.rand(1, generator=one).item(), torch.rand(1, generator=other).item(), torch.rand(1).item()}) == 3


def test_generators_are_found_among_the_attributes_of_things():
    class Sampler:
        def __init__(self):
            self.generator = np.random.default_rng()
            self.numbers = [1, 2]

    assert list(generators_within(sampler=Sampler(), nothing=None)) == ["sampler.generator"]


def test_the_generator_of_the_system_has_no_state_and_is_left_alone():
    assert not is_generator(random.SystemRandom())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
def test_that_of_an_accelerator_goes_on_where_it_was():
    torch.rand(1, device="cuda")
    states = through_a_file(generator_states())
    numbers = torch.rand(3, device="cuda")
    set_generator_states(states)
    assert torch.equal(torch.rand(3, device="cuda"), numbers)
