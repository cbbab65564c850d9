"""`Freeze` keeps modules as they are until an epoch is over, whatever else trains."""

import copy

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft.engine import Engine, Events
from camshaft.engine.sharded import whole
from camshaft.handlers import (
    AMP,
    Checkpoint,
    Compile,
    CUDAGraph,
    DataParallel,
    DistributedSampling,
    Evaluate,
    Freeze,
    FullySharded,
    OptimizerStep,
    cuda_graph,
)
from tests.ranks import values_of_ranks
from tests.resumption import MOMENTS, differences_after_kills

INPUTS = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
LABELS = INPUTS[:, :2].argmax(1)
BATCHES = list(zip(INPUTS.split(8), LABELS.split(8), strict=True))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


def network():
    torch.manual_seed(0)
    return Network()


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05)


def step_of(model):
    return lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1])


def flat(*modules):
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    return torch.cat([whole(tensor).detach().flatten().double() for tensor in tensors])


def each_epoch(engine, measure):
    """What ``measure`` says after each epoch, from now on."""
    measured = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: measured.append(measure()))
    return measured


# What is frozen


def test_frozen_modules_are_the_same_to_the_bit_until_their_epoch_is_over(engine_of):
    model = network()
    began = flat(model.stem, model.body)
    freeze = Freeze(model.stem, model.body, until_epoch=2)
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), freeze)
    weights, heads = (
        each_epoch(engine, lambda: flat(model.stem, model.body)),
        each_epoch(engine, lambda: flat(model.head)),
    )
    engine.run(BATCHES, max_epochs=3)
    assert [torch.equal(one, began) for one in weights] == [True, True, False]
    assert not torch.equal(heads[0], heads[1])
    assert not freeze.frozen


def test_without_an_epoch_they_are_frozen_for_good(engine_of):
    model = network()
    began = flat(model.stem)
    freeze = Freeze(model.stem)
    engine_of(step_of(model), OptimizerStep(adam(model)), freeze).run(BATCHES, max_epochs=3)
    assert torch.equal(flat(model.stem), began)
    assert freeze.frozen


def test_parts_may_be_thawed_one_after_the_other(engine_of):
    model = network()
    handlers = Freeze(model.body, until_epoch=1), Freeze(model.stem, until_epoch=2)
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), *handlers)
    trained = each_epoch(
        engine,
        lambda: [next(part.parameters()).requires_grad for part in (model.stem, model.body, model.head)],
    )
    engine.run(BATCHES, max_epochs=3)
    assert trained == [[False, False, True], [False, True, True], [True, True, True]]


def test_all_of_a_model_is_frozen_but_what_is_named(engine_of):
    model = network()
    freeze = Freeze(model, but=[model.head, model.stem[1]])
    engine_of(step_of(model), OptimizerStep(adam(model)), freeze).run(BATCHES)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == ["stem.1.weight", "stem.1.bias", "head.weight", "head.bias"]
    assert model.stem[1].num_batches_tracked == len(BATCHES)  # it follows the data


def test_a_weight_shared_with_a_part_that_is_trained_is_trained():
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "body": nn.Linear(3, 3), "head": head})
    Engine(lambda engine, batch: None).attach(Freeze(model, but=head))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "embedding.weight",
        "head.bias",
    ]


def test_what_required_no_gradient_before_requires_none_after_thawing(engine_of):
    model = network()
    model.stem[0].bias.requires_grad_(False)
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), Freeze(model.stem, until_epoch=1))
    engine.run(BATCHES, max_epochs=2)
    assert not model.stem[0].bias.requires_grad
    assert model.stem[0].weight.requires_grad


def test_a_gradient_from_before_is_dropped_so_that_no_optimizer_uses_it(engine_of):
    model = network()
    step_of(model)(None, BATCHES[0]).backward()
    engine_of(lambda engine, batch: None, Freeze(model.body))
    assert all(parameter.grad is None for parameter in model.body.parameters())
    assert all(parameter.grad is not None for parameter in model.head.parameters())


# Batch normalisation


def test_frozen_batch_normalisation_uses_its_statistics_and_keeps_them(engine_of):
    model = network()
    before = copy.deepcopy(model.stem).eval()
    normalised = []
    model.stem[1].register_forward_hook(lambda module, inputs, output: normalised.append(output.detach()))
    engine_of(step_of(model), OptimizerStep(adam(model)), Freeze(model.stem)).run(BATCHES)
    expected = [before[1](before[0](inputs)) for inputs, _ in BATCHES]
    assert all(torch.equal(one, other) for one, other in zip(normalised, expected, strict=True))


def test_batch_normalisation_stays_frozen_in_a_step_that_calls_train():
    model = network()
    trainer = create_supervised_trainer(model, adam(model), F.cross_entropy)  # which calls model.train() each time
    Freeze(model.stem, until_epoch=1).attach(trainer)
    counted = each_epoch(trainer, lambda: int(model.stem[1].num_batches_tracked))
    trainer.run(BATCHES, max_epochs=2)
    assert counted == [0, len(BATCHES)]


def test_thawed_batch_normalisation_follows_the_data_again(engine_of):
    model = network()
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), Freeze(model.stem, until_epoch=1))
    counted = each_epoch(engine, lambda: int(model.stem[1].num_batches_tracked))
    engine.run(BATCHES, max_epochs=2)
    assert counted == [0, len(BATCHES)]


def test_batch_normalisation_that_was_in_evaluation_mode_is_so_after_thawing(engine_of):
    model = network()
    model.stem[1].eval()
    engine_of(step_of(model), OptimizerStep(adam(model)), Freeze(model.stem, until_epoch=1)).run(BATCHES, max_epochs=2)
    assert not model.stem[1].training


def test_an_evaluation_leaves_modes_as_they_are(engine_of):
    model = network()
    evaluate = Evaluate(Engine(lambda engine, batch: model(batch[0])), BATCHES)
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), Freeze(model.stem, until_epoch=1), evaluate)
    modes = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: modes.append(model.stem[1].training))
    engine.run(BATCHES, max_epochs=2)
    assert modes == [False] * len(BATCHES) + [True] * len(BATCHES)
    assert model.body[1].training


# With other handlers


def program(directory):
    model = network()
    optimizer = torch.optim.AdamW([{"params": part.parameters(), "lr": lr} for part, lr in rates_of(model)])
    engine = Engine(step_of(model)).attach(
        Freeze(model.stem, until_epoch=2),
        Freeze(model.body, until_epoch=1),
        OptimizerStep(optimizer),
        Checkpoint(
            directory,
            model=model,
            optimizer=optimizer,
            at=Events.EPOCH_COMPLETED | Events.ITERATION_COMPLETED(every=3),
            keep_last=100,
        ),
    )
    return engine, {"data": BATCHES, "max_epochs": 3}


def rates_of(model):
    return (model.stem, 0.01), (model.body, 0.02), (model.head, 0.05)


def test_a_run_killed_at_any_moment_ends_in_the_same_bits(tmp_path):
    assert differences_after_kills(program, tmp_path, MOMENTS) == []


def test_a_second_run_of_the_same_engine_begins_frozen_again(engine_of):
    model = network()
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), Freeze(model.stem, until_epoch=1))
    counted = each_epoch(engine, lambda: int(model.stem[1].num_batches_tracked))
    engine.run(BATCHES, max_epochs=2)
    engine.run(BATCHES, max_epochs=2)
    assert counted == [0, 4, 4, 8]
    assert model.stem[0].weight.requires_grad


def test_thawed_parameters_are_recompiled():
    trained = []
    for compiled in (False, True):
        model = network()
        engine = Engine(step_of(model)).attach(OptimizerStep(adam(model)), Freeze(model.stem, until_epoch=1))
        if compiled:
            engine.attach(Compile(model, backend="eager"))
        engine.run(BATCHES, max_epochs=2)
        trained.append(flat(model))
    assert torch.equal(*trained)


def test_a_step_recorded_while_frozen_is_recorded_anew_when_thawed(monkeypatch):
    monkeypatch.setattr(cuda_graph, "DEVICES", ("cpu",))
    recorded = []
    monkeypatch.setattr(cuda_graph, "record", lambda work: recorded.append(model.stem[0].weight.requires_grad) or work)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Engine(step_of(model)).attach(OptimizerStep(optimizer), Freeze(model.stem, until_epoch=2), CUDAGraph(warmup=1)).run(
        BATCHES, max_epochs=4
    )
    assert recorded == [False, True]


def test_detaching_thaws(engine_of):
    model, freeze = network(), None
    freeze = Freeze(model.stem)
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), freeze)
    freeze.detach(engine)
    engine.run(BATCHES)
    assert model.stem[1].num_batches_tracked == len(BATCHES)
    assert all(parameter.requires_grad for parameter in model.parameters())


def on_ranks(parallel, *more):
    """The weights after each epoch, and which parts were trained, with the data shared among the processes."""
    model = network()
    model.body[1].p = 0.0  # each process would draw its own, and
    model.stem[1].eval()  # take the statistics of its own batches
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=8 // world)
    engine = Engine(step_of(model)).attach(
        Freeze(model.stem, until_epoch=1),
        OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.3)),
        DistributedSampling(),
        Evaluate(Engine(lambda engine, batch: model(batch[0])), BATCHES),
        *parallel(model),
        *more,
    )
    weights = each_epoch(engine, lambda: [flat(model.stem[0]).tolist(), flat(model.body, model.head).tolist()])
    engine.run(loader, max_epochs=2)
    return weights


PARALLEL = {
    "DataParallel": lambda model: [DataParallel(model)],
    "DataParallel of each part": lambda model: [
        DataParallel(model.stem),
        DataParallel(model.body),
        DataParallel(model.head),
    ],
    "FullySharded": lambda model: [FullySharded(model)],
}


@pytest.mark.distributed
@pytest.mark.parametrize("name", PARALLEL)
def test_processes_end_where_one_does(name):
    first, second = values_of_ranks(on_ranks, PARALLEL[name], processes=2, timeout=60)
    (stem_frozen, _), (stem, rest) = on_ranks(lambda model: [])
    for (frozen, _), (thawed, others) in (first, second):
        assert frozen == stem_frozen
        assert thawed == pytest.approx(stem, abs=1e-5)
        assert others == pytest.approx(rest, abs=1e-5)
    assert first == second
    assert stem != stem_frozen


# What is refused


@pytest.mark.parametrize("until_epoch", [0, -1, 1.0, True, "2"])
def test_what_is_no_number_of_an_epoch_is_refused(until_epoch):
    with pytest.raises(ValueError, match=f"the last epoch in which modules are frozen.*{until_epoch!r}"):
        Freeze(nn.Linear(2, 1), until_epoch=until_epoch)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="Freeze takes modules"):
        Freeze(nn.Parameter(torch.ones(2)))


@pytest.mark.parametrize("modules", [(), (nn.ReLU(),)], ids=["none", "without parameters"])
def test_nothing_to_freeze_is_refused(modules):
    with pytest.raises(ValueError, match="has no parameter to freeze"):
        Freeze(*modules)


def test_two_for_the_same_parameters_are_refused(engine_of):
    model = network()
    engine = engine_of(step_of(model), OptimizerStep(adam(model)), Freeze(model.stem), Freeze(model, but=model.head))
    with pytest.raises(ValueError, match=r"have \d parameter\(s\) in common"):
        engine.run(BATCHES)


def test_parameters_that_no_optimizer_would_train_after_thawing_are_refused(engine_of):
    model = network()
    optimizer = OptimizerStep(torch.optim.SGD(model.head.parameters(), lr=0.1))
    engine = engine_of(step_of(model), optimizer, Freeze(model.stem, until_epoch=1))
    with pytest.raises(ValueError, match=r"thaws 4 parameter\(s\) that no OptimizerStep on this engine trains"):
        engine.run(BATCHES)


def test_fp16_passes_over_an_optimizer_of_frozen_parameters_alone(engine_of):
    model = network()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.stem, model.body, model.head)]
    engine = engine_of(step_of(model), OptimizerStep(*optimizers), AMP("fp16"), Freeze(model.stem, until_epoch=1))
    began, weights = flat(model.stem), each_epoch(engine, lambda: flat(model.stem))
    engine.run(BATCHES * 4, max_epochs=2)
    assert [torch.equal(one, began) for one in weights] == [True, False]
