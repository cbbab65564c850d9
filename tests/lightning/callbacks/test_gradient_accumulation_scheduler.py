"""How many batches make a step, from epoch to epoch."""

import pytest

from camshaft.contrib.lightning.callbacks import GradientAccumulationScheduler, LambdaCallback
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


def test_the_number_of_batches_changes_with_the_epochs(fit, model_class):
    steps = []
    count = LambdaCallback(on_train_epoch_end=lambda trainer, module: steps.append(trainer.global_step))
    fit(model_class(), GradientAccumulationScheduler({1: 3, 2: 2}), count, max_epochs=4)
    assert steps == [3, 4, 6, 8]  # of three batches: 1 + 1 + 1, 3, 2 + 1, 2 + 1


def test_the_trainer_can_fit_again_afterwards(trainer_with, model_class, batches):
    trainer = trainer_with(GradientAccumulationScheduler({0: 3}), max_epochs=1)
    trainer.fit(model := model_class(), batches)
    trainer.fit(model, batches)  # which finds the trainer's own number of batches
    assert trainer.accumulate_grad_batches == 1


def test_what_was_given_is_not_changed():
    given = {4: 2}
    assert GradientAccumulationScheduler(given).scheduling == {0: 1, 4: 2}
    assert given == {4: 2}


def test_whether_it_will_accumulate_at_all():
    assert GradientAccumulationScheduler({4: 2}).going_to_accumulate_grad_batches()
    assert not GradientAccumulationScheduler({4: 1}).going_to_accumulate_grad_batches()


@pytest.mark.parametrize(
    ("scheduling", "error", "complaint"),
    [
        ({}, TypeError, "needs at least one epoch"),
        ({-1: 2}, MisconfigurationException, "at least 0, not -1"),
        ({"4": 2}, MisconfigurationException, "at least 0, not '4'"),
        ({4: 0}, MisconfigurationException, "At least 1 batch is accumulated, not 0"),
    ],
    ids=["empty", "a negative epoch", "an epoch that is a string", "no batches"],
)
def test_schedules_that_make_no_sense_are_refused(scheduling, error, complaint):
    with pytest.raises(error, match=complaint):
        GradientAccumulationScheduler(scheduling)


def test_a_number_given_to_the_trainer_contradicts_it(fit, model_class):
    with pytest.raises(ValueError, match="contradict each other"):
        fit(model_class(), GradientAccumulationScheduler({1: 3}), accumulate_grad_batches=2)


def test_a_module_that_makes_its_own_steps_is_refused(fit, model_class):
    model = model_class()
    model.automatic_optimization = False
    with pytest.raises(RuntimeError, match="must accumulate gradients itself"):
        fit(model, GradientAccumulationScheduler({1: 3}))
