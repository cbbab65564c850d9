"""torchmetrics beside what tests/handlers/test_metrics.py shows: collections, wrappers, lists as state, resuming."""

import pytest
import torch
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassConfusionMatrix, MulticlassRecall
from torchmetrics.wrappers import ClasswiseWrapper

from camshaft.engine import Engine, Events
from camshaft.handlers import Checkpoint, EarlyStopping, Evaluate, Metrics

CLASSES = 3


def batches(number=6, size=4):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(size, CLASSES, generator=generator).softmax(1),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(number)
    ]


def all_kinds():
    """Metrics whose state is a number, a matrix, or all that was seen."""
    return Metrics(
        accuracy=MulticlassAccuracy(CLASSES),
        confusion=MulticlassConfusionMatrix(CLASSES),
        auroc=MulticlassAUROC(CLASSES, thresholds=None),
        collection=torchmetrics.MetricCollection(
            {"micro": MulticlassAccuracy(CLASSES, average="micro"), "recall": MulticlassRecall(CLASSES)}, prefix="all_"
        ),
    )


def test_values_are_those_of_all_batches_together():
    data = batches()
    metrics = Engine(lambda engine, batch: batch).attach(all_kinds()).run(data).metrics
    predictions, targets = (torch.cat(part) for part in zip(*data, strict=True))
    assert metrics.keys() == {"accuracy", "confusion", "auroc", "all_micro", "all_recall"}
    for name, metric in {
        "accuracy": MulticlassAccuracy(CLASSES),
        "confusion": MulticlassConfusionMatrix(CLASSES),
        "auroc": MulticlassAUROC(CLASSES, thresholds=None),
        "all_recall": MulticlassRecall(CLASSES),
    }.items():
        torch.testing.assert_close(metrics[name], metric(predictions, targets))


def test_an_epoch_starts_from_nothing():
    engine = Engine(lambda engine, batch: batch).attach(all_kinds())
    once = dict(engine.run(batches(2)).metrics)
    twice = engine.run(batches(2), max_epochs=2).metrics
    assert all(torch.equal(twice[name], value) for name, value in once.items())


def test_a_wrapper_by_classes_gives_a_value_for_each():
    wrapped = ClasswiseWrapper(MulticlassRecall(CLASSES, average=None), labels=["cat", "dog", "owl"], prefix="recall_")
    metrics = Engine(lambda engine, batch: batch).attach(Metrics(recall=wrapped)).run(batches()).metrics
    assert metrics.keys() == {"recall_cat", "recall_dog", "recall_owl"}


def test_a_value_of_a_wrapper_can_be_monitored():
    wrapped = ClasswiseWrapper(MulticlassRecall(CLASSES, average=None), labels=["cat", "dog", "owl"], prefix="recall_")
    model = torch.nn.Identity()
    evaluator = Engine(lambda engine, batch: (model(batch[0]), batch[1])).attach(Metrics(recall=wrapped))
    stopping = EarlyStopping("val_recall_dog", patience=2)
    trainer = Engine(lambda engine, batch: None).attach(Evaluate(evaluator, batches()), stopping)
    assert trainer.run([0], max_epochs=9).epoch == 3


@pytest.mark.parametrize("killed_at", [3, 8])
def test_a_run_that_is_killed_within_an_epoch_goes_on_with_what_was_measured(tmp_path, killed_at):
    def run(directory, kill_at=None):
        keep = Checkpoint(directory, at=Events.ITERATION_COMPLETED)
        wrapped = Metrics(recall=ClasswiseWrapper(MulticlassRecall(CLASSES, average=None)))
        engine = Engine(lambda engine, batch: batch).attach(all_kinds(), wrapped, keep)

        @engine.on(Events.ITERATION_STARTED(once=kill_at or 1000))
        def kill(engine):
            raise KeyboardInterrupt

        return engine.run(batches(), max_epochs=2).metrics

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed_at)
    again = run(tmp_path / "killed")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
