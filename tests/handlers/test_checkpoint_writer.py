import threading
from collections import Counter, OrderedDict

import pytest
import torch

from camshaft.handlers.checkpoint_writer import BackgroundWriter


class Written:
    """What has been written; the writing waits while ``gate`` is closed."""

    def __init__(self):
        self.states = []
        self.gate = threading.Event()
        self.gate.set()
        self.error = None

    def __call__(self, name, state, metadata):
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.states.append((name, {key: value.clone() for key, value in state["model"].items()}, metadata))


@pytest.fixture
def written():
    return Written()


def test_what_changes_after_the_call_is_written_as_it_was(written):
    writer = BackgroundWriter(written)
    weight = torch.zeros(3)
    written.gate.clear()
    writer.write("one", {"model": {"weight": weight}}, {"iteration": 1})
    weight += 1
    written.gate.set()
    writer.wait()
    name, state, metadata = written.states[0]
    assert (name, state["weight"].tolist(), metadata) == ("one", [0.0, 0.0, 0.0], {"iteration": 1})


def test_the_caller_does_not_wait_for_the_first_one(written):
    writer = BackgroundWriter(written)
    written.gate.clear()
    writer.write("one", {"model": {"weight": torch.zeros(1)}}, {})
    assert written.states == []
    written.gate.set()
    writer.wait()
    assert len(written.states) == 1


def test_a_second_one_waits_for_the_first_so_that_none_is_torn(written):
    writer = BackgroundWriter(written)
    weight = torch.zeros(1000)
    for number in range(20):
        weight.fill_(number)
        writer.write(str(number), {"model": {"weight": weight}}, {})
    writer.wait()
    assert [set(state["weight"].tolist()) for _, state, _ in written.states] == [{float(n)} for n in range(20)]


@pytest.mark.parametrize("call", ["write", "wait", "raise_error"])
def test_an_error_is_raised_by_the_next_call(written, call):
    writer = BackgroundWriter(written)
    written.error = OSError("the disk is full")
    state = {"model": {"weight": torch.zeros(1)}}
    writer.write("one", state, {})
    while not writer._underway.done():
        pass
    with pytest.raises(OSError, match="the disk is full"):
        writer.write("two", state, {}) if call == "write" else getattr(writer, call)()


def test_an_error_is_raised_once(written):
    writer = BackgroundWriter(written)
    written.error = OSError("the disk is full")
    writer.write("one", {"model": {"weight": torch.zeros(1)}}, {})
    with pytest.raises(OSError, match="the disk is full"):
        writer.wait()
    writer.wait()
    writer.raise_error()


def test_the_copy_takes_its_memory_from_the_one_before_even_if_other_things_have_changed():
    addresses = []
    writer = BackgroundWriter(lambda name, state, metadata: addresses.append(state["weight"].data_ptr()))
    writer.write("one", {"weight": torch.zeros(999), "old": torch.ones(1), "steps": [1]}, {})
    writer.write("two", {"weight": torch.ones(999), "new": torch.ones(2), "steps": [1, 2]}, {})
    writer.wait()
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.tensor(5),
        torch.zeros(0, 3),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64),
        torch.nn.Parameter(torch.ones(2)),
        torch.arange(10.0)[::2],
    ],
    ids=["not contiguous", "a scalar", "empty", "bfloat16", "complex", "a parameter", "a view"],
)
def test_a_tensor_is_copied_as_it_is(written, tensor):
    writer = BackgroundWriter(written)
    writer.write("one", {"model": {"tensor": tensor}}, {})
    writer.wait()
    copy = written.states[0][1]["tensor"]
    assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(copy, tensor)


def test_tensors_that_share_memory_share_that_of_their_copies():
    states = []
    writer = BackgroundWriter(lambda name, state, metadata: states.append(state))
    tied = torch.arange(4.0)
    writer.write("one", {"encoder": tied, "decoder": tied, "part": tied[2:]}, {})
    writer.wait()
    assert states[0]["encoder"].data_ptr() == states[0]["decoder"].data_ptr() != tied.data_ptr()
    assert states[0]["part"].tolist() == [2.0, 3.0]


def test_tensors_of_other_layouts_are_copied_too(written):
    writer = BackgroundWriter(written)
    sparse = torch.eye(3).to_sparse()
    writer.write("one", {"model": {"sparse": sparse}}, {})
    writer.wait()
    assert torch.equal(written.states[0][1]["sparse"].to_dense(), torch.eye(3))


def test_the_kinds_of_containers_stay(written):
    states = []
    writer = BackgroundWriter(lambda name, state, metadata: states.append(state))
    model = torch.nn.Linear(1, 1).state_dict()
    writer.write("one", {"model": model, "steps": Counter([1, 1]), "betas": (0.9, 0.99), "empty": []}, {})
    writer.wait()
    assert type(states[0]["model"]) is OrderedDict
    assert states[0]["model"]._metadata == model._metadata
    assert states[0]["steps"] == Counter({1: 2})
    assert (states[0]["betas"], states[0]["empty"]) == ((0.9, 0.99), [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
def test_tensors_on_an_accelerator_are_copied_to_pinned_memory(written):
    writer = BackgroundWriter(written)
    writer.write("one", {"model": {"weight": torch.arange(4.0, device="cuda")}}, {})
    writer.wait()
    copy = written.states[0][1]["weight"]
    assert (copy.device.type, copy.tolist()) == ("cpu", [0.0, 1.0, 2.0, 3.0])
