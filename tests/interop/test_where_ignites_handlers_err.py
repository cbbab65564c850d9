"""Where Ignite's handlers err, and what ours do instead; what differs in the engine is in tests/conformance/.

Each error is asserted of Ignite's handler, too: when Ignite mends it, a test here says so, and docs/from-ignite.md can
forget it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import DeterministicEngine, create_supervised_trainer
from ignite.handlers import Checkpoint as IgniteCheckpoint
from ignite.handlers import DiskSaver, EMAHandler
from ignite.handlers import EarlyStopping as IgniteEarlyStopping
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from camshaft.engine import Engine, Events
from camshaft.handlers import AMP, EMA, Checkpoint, EarlyStopping, GradientAccumulation, OptimizerStep
from camshaft.handlers.checkpoint_store import BrokenCheckpointError
from tests.interop.same import assert_same
from tests.interop.training import batches

# --------------------------------------------------------------------------------------------------- early stopping


def epochs_until_stopped(scores: list[float], handler_on: Any, loaded: Any = None) -> tuple[int, Any]:
    """The epochs that an engine ran whose step gives these scores."""
    given = iter(scores)
    engine = Engine(lambda engine, batch: {"score": next(given)})
    handler = handler_on(engine)
    if loaded is not None:
        handler.load_state_dict(loaded)
    return engine.run([0], max_epochs=len(scores)).epoch, handler.state_dict()


def ignites_stopping(patience: int, **options: Any) -> Any:
    def attach(engine: Engine) -> IgniteEarlyStopping:
        handler = IgniteEarlyStopping(patience, lambda engine: engine.state.output["score"], engine, **options)
        handler.attach(engine, Events.EPOCH_COMPLETED)
        return handler

    return attach


def our_stopping(patience: int, **options: Any) -> Any:
    def attach(engine: Engine) -> EarlyStopping:
        handler = EarlyStopping("score", patience, mode="max", **options)
        handler.attach(engine)
        return handler

    return attach


def test_nan_is_no_improvement() -> None:
    """For Ignite it is one, and so is whatever comes after it."""
    scores = [0.5, math.nan, 0.4, 0.3, 0.2, 0.1]
    assert epochs_until_stopped(scores, ignites_stopping(2))[0] == 5
    assert epochs_until_stopped(scores, our_stopping(2))[0] == 3


def test_a_least_improvement_means_the_same_for_negative_scores() -> None:
    """In relation to a negative score, Ignite asks for none: a worse score improves on it."""
    worse_and_worse = [-1.0, -1.05, -1.1, -1.15]
    assert epochs_until_stopped(worse_and_worse, ignites_stopping(1, threshold=0.1, threshold_mode="rel"))[0] == 4
    assert epochs_until_stopped(worse_and_worse, our_stopping(1, min_delta=0.1))[0] == 2


def test_what_a_checkpoint_kept_of_the_patience_counts() -> None:
    for stopping, epochs in ((ignites_stopping(4), 5), (our_stopping(4), 2)):
        _, kept = epochs_until_stopped([0.5, 0.4, 0.4], stopping)
        assert kept["counter"] == 2
        assert epochs_until_stopped([0.3] * 5, stopping, loaded=kept)[0] == epochs


# --------------------------------------------------------------------------------------------------- moving averages


def test_an_average_with_a_name_of_its_own_warms_up() -> None:
    """Ignite's warm-up writes to the name "ema_momentum", whatever the handler was named."""
    model = nn.Linear(2, 1)
    engine = Engine(lambda engine, batch: None)
    engine.state.ema_momentum = None  # Ignite would warn, and make it
    EMAHandler(model, momentum=0.1, momentum_warmup=0.5, warmup_iters=4).attach(engine, name="mine")
    momenta = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: momenta.append(engine.state.mine))
    engine.run(range(3))
    assert momenta == [0.1, 0.1, 0.1]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(lambda engine, batch: model(torch.ones(1, 2)).mean())
    weights, ema = [], EMA(model, decay=0.9, warmup=True)
    engine.attach(OptimizerStep(optimizer), ema)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: weights.append(model.weight.detach().clone()))
    engine.run(range(3))
    torch.testing.assert_close(ema.module.weight.detach(), torch.stack(weights).mean(0))


def test_copied_buffers_do_not_change_with_the_model() -> None:
    model = nn.BatchNorm1d(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(lambda engine, batch: model(batch).square().mean())
    theirs, ours = EMAHandler(model), EMA(model)
    theirs.attach(engine)
    engine.attach(OptimizerStep(optimizer), ours)
    engine.run([torch.randn(8, 2)])
    average = ours.module
    kept = theirs.ema_model.running_mean.clone(), average.running_mean.clone()
    model(torch.randn(8, 2))
    assert not torch.equal(theirs.ema_model.running_mean, kept[0])
    assert torch.equal(average.running_mean, kept[1])


# ------------------------------------------------------------------------------------------------------- checkpoints


def kept_by_ignite(directory: Path, engine: Any = None, **objects: Any) -> Path:
    engine = Engine(lambda engine, batch: None) if engine is None else engine
    checkpoint = IgniteCheckpoint(objects, DiskSaver(directory))
    engine.add_event_handler(Events.COMPLETED, checkpoint)
    engine.run([0])
    return directory / checkpoint.last_checkpoint


def kept_by_us(directory: Path, **objects: Any) -> Path:
    checkpoint = Checkpoint(directory, **objects)
    Engine(lambda engine, batch: None).attach(checkpoint).run([0])
    return checkpoint.last / "state.pt"


def flip_a_bit_of(weight: torch.Tensor, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(weight.detach().numpy().tobytes())] ^= 1
    path.write_bytes(content)


def test_a_changed_byte_is_noticed(tmp_path) -> None:
    model, fresh = nn.Linear(16, 16), nn.Linear(16, 16)
    path = kept_by_ignite(tmp_path / "ignite", model=model)
    flip_a_bit_of(model.weight, path)
    IgniteCheckpoint.load_objects({"model": fresh}, path)
    assert not torch.equal(fresh.weight, model.weight)

    path = kept_by_us(tmp_path / "ours", model=model)
    flip_a_bit_of(model.weight, path)
    again = Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path / "again", resume=path.parent, model=fresh))
    with pytest.raises(BrokenCheckpointError, match="not what was written"):
        again.run([0])


def test_loading_is_all_or_nothing(tmp_path) -> None:
    objects = {"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)}

    def misfits() -> tuple[dict[str, nn.Module], torch.Tensor]:
        built = {"first": nn.Linear(2, 2), "second": nn.Linear(3, 3)}
        return built, built["first"].weight.detach().clone()

    path = kept_by_ignite(tmp_path / "ignite", **objects)
    built, before = misfits()
    with pytest.raises(RuntimeError, match="size mismatch"):
        IgniteCheckpoint.load_objects(built, path)
    assert not torch.equal(built["first"].weight, before)

    path = kept_by_us(tmp_path / "ours", **objects)
    built, before = misfits()
    again = Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path / "again", resume=path.parent, **built))
    with pytest.raises(ValueError, match="Nothing was changed"):
        again.run([0])
    assert torch.equal(built["first"].weight, before)


def test_a_score_that_is_no_number_blocks_no_later_one(tmp_path) -> None:
    def engine_with(scores: list[float]) -> Engine:
        given = iter(scores)
        return Engine(lambda engine, batch: {"score": next(given)})

    engine = engine_with([math.nan, 0.5, 0.9])
    best = IgniteCheckpoint(
        {"model": nn.Linear(2, 2)},
        DiskSaver(tmp_path / "ignite", create_dir=True),
        score_name="score",
        score_function=lambda engine: engine.state.output["score"],
    )
    engine.add_event_handler(Events.EPOCH_COMPLETED, best)
    engine.run([0], max_epochs=3)
    assert [path.name for path in (tmp_path / "ignite").iterdir()] == ["model_score=nan.pt"]

    ours = Checkpoint(tmp_path / "ours", model=nn.Linear(2, 2), monitor="score", mode="max")
    engine_with([math.nan, 0.9, 0.5]).attach(ours).run([0], max_epochs=3)
    assert ours.best.name == "iteration=00000002,epoch=2"


def test_a_compiled_model_is_kept_under_its_own_names(tmp_path) -> None:
    compiled = torch.compile(nn.Linear(2, 2))
    theirs = torch.load(kept_by_ignite(tmp_path / "ignite", model=compiled), weights_only=True)
    ours = torch.load(kept_by_us(tmp_path / "ours", model=compiled), weights_only=True)
    assert list(theirs) == ["_orig_mod.weight", "_orig_mod.bias"]
    assert list(ours["model"]) == ["weight", "bias"]


class Deterministic(DeterministicEngine, Engine):
    """Ignite's deterministic engine on ours."""


def test_checkpoints_of_a_deterministic_engine_load(tmp_path) -> None:
    """Ignite's hold the state of NumPy's generator, which torch does not load without running code."""
    path = kept_by_ignite(
        tmp_path / "ignite", engine := DeterministicEngine(lambda engine, batch: None), trainer=engine
    )
    with pytest.raises(Exception, match="Weights only load failed"):
        IgniteCheckpoint.load_objects({"trainer": engine}, path)

    ours = Deterministic(lambda engine, batch: None).attach(Checkpoint(tmp_path / "ours"))
    ours.run([0])
    again = Deterministic(lambda engine, batch: None).attach(Checkpoint(tmp_path / "ours"))
    assert again.run([0], max_epochs=2).iteration == 2


def test_a_deterministic_run_goes_on_from_our_checkpoint(tmp_path) -> None:
    def batches_seen(max_epochs: int, directory: Path) -> list[torch.Tensor]:
        torch.manual_seed(3)
        seen: list[torch.Tensor] = []
        engine = Deterministic(lambda engine, batch: seen.append(batch))
        Checkpoint(directory).attach(engine)
        engine.run(DataLoader(torch.arange(6.0), batch_size=2, shuffle=True), max_epochs=max_epochs)
        return seen

    in_parts = batches_seen(2, tmp_path / "in parts") + batches_seen(4, tmp_path / "in parts")
    assert_same(in_parts, batches_seen(4, tmp_path / "whole"))


# --------------------------------------------------------------------------------------------- the supervised trainer


def test_mixed_precision_works_without_cuda() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    model.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    if not torch.cuda.is_available():
        theirs = create_supervised_trainer(model, optimizer, F.cross_entropy, amp_mode="amp")
        with pytest.warns(UserWarning, match="CUDA is not available"):
            theirs.run(batches(1))
        assert seen.pop() == torch.float32
    ours = create_supervised_trainer(model, optimizer, F.cross_entropy)
    AMP("bf16").attach(ours)
    ours.run(batches(1))
    assert seen == [torch.bfloat16]


def test_a_group_that_the_data_leaves_incomplete_makes_its_step() -> None:
    def steps_of(optimizer: torch.optim.Optimizer) -> list[int]:
        steps: list[int] = []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return steps

    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = steps_of(optimizer)
    theirs = create_supervised_trainer(model, optimizer, F.cross_entropy, gradient_accumulation_steps=4)
    theirs.run(batches(6))
    assert len(steps) == 1

    ours = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    ours.attach(OptimizerStep(optimizer), GradientAccumulation(4))
    ours.run(batches(6))
    assert len(steps) == 1 + 2
