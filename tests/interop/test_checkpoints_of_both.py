"""Checkpoints of Ignite are read by ours, and ours by Ignite and by plain ``torch.load``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine as IgniteEngine
from ignite.engine import Events
from ignite.handlers import Checkpoint as IgniteCheckpoint
from ignite.handlers import DiskSaver, ModelCheckpoint

from camshaft.engine import Engine
from camshaft.handlers import Checkpoint
from tests.interop.same import assert_same
from tests.interop.training import Training, batches, network


@pytest.fixture(params=[Engine, IgniteEngine], ids=["camshaft", "ignite"])
def engine_class(request) -> type[IgniteEngine]:
    """The engine on which the run that wrote the checkpoint ran."""
    return request.param


def written_by_ignite(engine_class: type[IgniteEngine], directory: Path, *names: str) -> tuple[Training, Path]:
    """A training of two epochs, and the file in which Ignite's ``Checkpoint`` has kept these objects of it."""
    training = Training(engine_class)
    objects = {name: getattr(training, name) for name in names}
    checkpoint = IgniteCheckpoint(objects, DiskSaver(directory))
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
    training.trainer.run(batches(), max_epochs=2)
    return training, directory / checkpoint.last_checkpoint


def resumed(path: Path, directory: Path, *names: str) -> Training:
    """A new training to which our ``Checkpoint`` has given the objects in ``path``; it makes no step."""
    torch.manual_seed(5)
    training = Training(Engine)
    objects = {name: getattr(training, name) for name in names}
    if "optimizer" not in names:
        model = training.model
        training.trainer = Engine(lambda engine, batch: model(batch[0]))  # else it would warn of what is not kept
    Checkpoint(directory, resume=path, **objects).attach(training.trainer)
    training.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: training.trainer.terminate(skip_completed=True))
    training.trainer.run(batches(), max_epochs=1)
    return training


def test_a_file_of_several_objects_is_taken_over_by_name(engine_class, tmp_path) -> None:
    trained, path = written_by_ignite(engine_class, tmp_path / "ignite", "model", "optimizer", "trainer")
    training = resumed(path, tmp_path / "ours", "model", "optimizer")
    assert_same(training.model.state_dict(), trained.model.state_dict())
    assert_same(training.optimizer.state_dict(), trained.optimizer.state_dict())


def test_a_file_of_a_single_object_has_no_name_in_it(engine_class, tmp_path) -> None:
    trained, path = written_by_ignite(engine_class, tmp_path / "ignite", "model")
    assert path.name.startswith("model_")
    training = resumed(path, tmp_path / "ours", "model")
    assert_same(training.model.state_dict(), trained.model.state_dict())


def test_a_file_of_a_model_checkpoint_is_read(engine_class, tmp_path) -> None:
    trained = Training(engine_class)
    trained.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, ModelCheckpoint(tmp_path / "ignite", "best"), {"model": trained.model}
    )
    trained.trainer.run(batches())
    (path,) = (tmp_path / "ignite").iterdir()
    assert_same(resumed(path, tmp_path / "ours", "model").model.state_dict(), trained.model.state_dict())


def test_the_run_that_takes_them_over_begins_at_its_beginning(engine_class, tmp_path) -> None:
    _, path = written_by_ignite(engine_class, tmp_path / "ignite", "model", "optimizer", "trainer")
    training = Training(Engine)
    Checkpoint(tmp_path / "ours", resume=path, model=training.model, optimizer=training.optimizer).attach(
        training.trainer
    )
    state = training.trainer.run(batches(), max_epochs=1)
    assert (state.epoch, state.iteration) == (1, 6)


def test_a_file_that_does_not_fit_changes_nothing(engine_class, tmp_path) -> None:
    _, path = written_by_ignite(engine_class, tmp_path / "ignite", "model", "optimizer")
    content = torch.load(path, weights_only=True)
    content["optimizer"]["param_groups"] = []
    torch.save(content, path)
    training = Training(Engine)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    Checkpoint(tmp_path / "ours", resume=path, model=training.model, optimizer=training.optimizer).attach(
        training.trainer
    )
    with pytest.raises(ValueError, match=r"does not fit: 'optimizer' .* Nothing was changed"):
        training.trainer.run(batches())
    assert_same(training.model.state_dict(), before)


def test_a_file_without_what_is_asked_for_is_refused_and_says_what_it_has(engine_class, tmp_path) -> None:
    _, path = written_by_ignite(engine_class, tmp_path / "ignite", "model", "optimizer")
    training = Training(Engine)
    Checkpoint(tmp_path / "ours", resume=path, net=training.model, optimizer=training.optimizer).attach(
        training.trainer
    )
    with pytest.raises(ValueError, match=r"has no 'net'; it has \['model', 'optimizer'\]"):
        training.trainer.run(batches())


# ------------------------------------------------------------------------------------------------------------- ours


def written_by_us(engine_class: type[IgniteEngine], directory: Path) -> tuple[Training, Path]:
    training = Training(engine_class)
    checkpoint = Checkpoint(directory, model=training.model, optimizer=training.optimizer)
    checkpoint.attach(training.trainer)
    training.trainer.run(batches(), max_epochs=2)
    return training, checkpoint.last / "state.pt"


def test_ours_is_read_by_plain_torch_without_running_any_code(engine_class, tmp_path) -> None:
    trained, path = written_by_us(engine_class, tmp_path)
    content = torch.load(path, weights_only=True)
    assert_same(content["model"], trained.model.state_dict())
    assert_same(content["optimizer"], trained.optimizer.state_dict())
    assert content["camshaft"]["engine"]["iteration"] == 12


@pytest.mark.parametrize("as_path", [True, False], ids=["from its path", "from its content"])
def test_ours_is_read_by_ignites_checkpoint(engine_class, tmp_path, as_path) -> None:
    trained, path = written_by_us(engine_class, tmp_path)
    objects: dict[str, Any] = {"model": network()}
    objects["optimizer"] = torch.optim.SGD(objects["model"].parameters(), lr=1.0, momentum=0.9)
    content = torch.load(path, weights_only=True)
    IgniteCheckpoint.load_objects(objects, path if as_path else content)
    assert_same(objects["model"].state_dict(), trained.model.state_dict())
    assert_same(objects["optimizer"].state_dict(), trained.optimizer.state_dict())


@pytest.mark.parametrize(
    ("writer", "reader"), [(Engine, IgniteEngine), (IgniteEngine, Engine)], ids=["ours", "ignites"]
)
def test_a_trainer_kept_on_one_engine_goes_on_on_the_other(writer, reader, tmp_path) -> None:
    _, path = written_by_ignite(writer, tmp_path, "model", "optimizer", "trainer")
    training = Training(reader)
    objects = {"model": training.model, "optimizer": training.optimizer, "trainer": training.trainer}
    IgniteCheckpoint.load_objects(objects, torch.load(path, weights_only=True))
    iterations = training.note(Events.ITERATION_STARTED, lambda: training.trainer.state.iteration)
    training.trainer.run(batches(), max_epochs=3)
    assert iterations == list(range(13, 19))


@pytest.mark.parametrize("engines", [(Engine, IgniteEngine), (IgniteEngine, Engine)], ids=["ours", "ignites"])
def test_a_run_of_our_checkpoint_goes_on_on_the_other_engine_to_the_same_bits(engines, tmp_path) -> None:
    def run(engine_class, max_epochs, directory):
        torch.manual_seed(0)
        training = Training(engine_class)
        Checkpoint(directory, model=training.model, optimizer=training.optimizer).attach(training.trainer)
        training.trainer.run(batches(), max_epochs=max_epochs)
        return training

    run(engines[0], 2, tmp_path / "in parts")
    went_on, whole = run(engines[1], 4, tmp_path / "in parts"), run(engines[1], 4, tmp_path / "whole")
    assert went_on.trainer.state.iteration == 24
    assert_same(went_on.model.state_dict(), whole.model.state_dict())
