"""Metrics of Ignite, of every kind, measure on our engine what they measure on Ignite's, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import (
    ROC_AUC,
    Accuracy,
    Average,
    ClassificationReport,
    ConfusionMatrix,
    CosineSimilarity,
    Entropy,
    EpochMetric,
    Fbeta,
    Frequency,
    GeometricAverage,
    KLDivergence,
    Loss,
    MeanSquaredError,
    MetricGroup,
    MetricsLambda,
    Precision,
    Recall,
    RootMeanSquaredError,
    RunningAverage,
    TopKCategoricalAccuracy,
    VariableAccumulation,
    mIoU,
)
from ignite.metrics.metric import (
    BatchFiltered,
    BatchWise,
    EpochWise,
    MetricUsage,
    RunningBatchWise,
    RunningEpochWise,
    SingleEpochRunningBatchWise,
)
from ignite.metrics.regression import PearsonCorrelation, R2Score
from torch.nn import functional as F

from tests.interop.training import Training, batches

row = pytest.mark.row


def one_hot(output: Any) -> Any:
    return output[0].softmax(1), F.one_hot(output[1], 3).float()


def first_class(output: Any) -> Any:
    return output[0][:, 0].sigmoid(), (output[1] == 0).long()


def first_numbers(output: Any) -> Any:
    return output[0][:, 0], output[1].float()


EPOCH_WISE = {
    "accuracy": lambda: Accuracy(),
    "average": lambda: Average(output_transform=lambda output: output[0].mean()),
    "confusion": lambda: ConfusionMatrix(3),
    "correlation": lambda: PearsonCorrelation(output_transform=first_numbers),
    "cosine": lambda: CosineSimilarity(output_transform=one_hot),
    "entropy": lambda: Entropy(),
    "f1": lambda: Fbeta(1.0),
    "geometric": lambda: GeometricAverage(output_transform=lambda output: output[0].exp().mean()),
    "iou": lambda: mIoU(ConfusionMatrix(3)),
    "kl": lambda: KLDivergence(output_transform=one_hot),
    "loss": lambda: Loss(F.cross_entropy),
    "precision": lambda: Precision(average=False),
    "r2": lambda: R2Score(output_transform=first_numbers),
    "recall": lambda: Recall(average="macro"),
    "report": lambda: ClassificationReport(output_dict=True),
    "roc_auc": lambda: ROC_AUC(output_transform=first_class),
    "root": lambda: RootMeanSquaredError(output_transform=one_hot),
    "squared": lambda: MeanSquaredError(output_transform=one_hot),
    "sum": lambda: VariableAccumulation(torch.add, output_transform=lambda output: output[0].sum()),
    "top2": lambda: TopKCategoricalAccuracy(2),
}


@row("ignite", "metrics, epoch-wise")
def test_metrics_of_an_evaluator_are_those_of_each_epoch(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        for name, make in EPOCH_WISE.items():
            make().attach(training.evaluator, name)
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: training.evaluator.run(batches(3, seed=2)))
        measured = training.note(Events.EPOCH_COMPLETED, lambda: dict(training.evaluator.state.metrics))
        training.trainer.run(batches(), max_epochs=3)
        return measured

    measured = outcome_of(program)
    assert set(EPOCH_WISE) <= set(measured[-1])
    assert measured[0]["accuracy"] < measured[-1]["accuracy"] <= 1


class FromTheSecondIterationOn(MetricUsage):
    """A usage as users write them."""

    usage_name = "from_the_second_iteration_on"

    def __init__(self) -> None:
        filtered = Events.ITERATION_COMPLETED(event_filter=lambda engine, iteration: iteration > 1)
        super().__init__(Events.STARTED, Events.COMPLETED, filtered)


# What the average of the numbers 1 to 6, in two epochs of three iterations, is after each iteration and epoch.
USAGES: dict[str, tuple[Any, list[Any]]] = {
    "batch-wise": (BatchWise, [1, 2, 3, 3, 4, 5, 6, 6]),
    "running batch-wise": (RunningBatchWise, [1, 1.5, 2, 2, 2.5, 3, 3.5, 3.5]),
    "single-epoch running batch-wise": (SingleEpochRunningBatchWise, [1, 1.5, 2, 2, 4, 4.5, 5, 5]),
    "epoch-wise usage": (EpochWise, [None, None, None, 2, 2, 2, 2, 5]),
    "running epoch-wise": (RunningEpochWise, [None, None, None, 3, 3, 3, 3, 4.5]),
    "batch-filtered": (lambda: BatchFiltered(every=2), [None, None, None, 2, 2, 2, 2, 5]),
    "usage of one's own": (FromTheSecondIterationOn, [None] * 8 + [4]),
}


@pytest.mark.parametrize("usage", [pytest.param(name, marks=row("ignite", f"metrics, {name}")) for name in USAGES])
def test_a_usage_decides_when_a_metric_is_reset_updated_and_computed(outcome_of, usage) -> None:
    make_usage, expected = USAGES[usage]

    def program(engine_class, directory):
        numbers = iter(range(1, 7))
        engine = engine_class(lambda engine, batch: float(next(numbers)))
        Average().attach(engine, "average", usage=make_usage())
        seen = []
        events = Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED | Events.COMPLETED
        engine.add_event_handler(events, lambda: seen.append(engine.state.metrics.get("average")))
        engine.run(range(3), max_epochs=2)
        return seen

    assert outcome_of(program)[: len(expected)] == expected


@row("ignite", "RunningAverage of the output")
def test_a_running_average_of_the_output_runs_on_over_epochs_unless_told(outcome_of) -> None:
    def program(engine_class, directory):
        numbers = iter(range(1, 7))
        engine = engine_class(lambda engine, batch: float(next(numbers)))
        RunningAverage(alpha=0.5, output_transform=lambda output: output).attach(engine, "runs on")
        bound = RunningAverage(alpha=0.5, output_transform=lambda output: output)
        bound.attach(engine, "of the epoch", usage=SingleEpochRunningBatchWise())
        seen = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(tuple(engine.state.metrics.values())))
        engine.run(range(3), max_epochs=2)
        return seen

    assert outcome_of(program) == [(1, 1), (1.5, 1.5), (2.25, 2.25), (3.125, 4), (4.0625, 4.5), (5.03125, 5.25)]


@row("ignite", "RunningAverage of a metric")
def test_a_running_average_of_a_metric_follows_it(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        RunningAverage(Accuracy(), alpha=0.9).attach(training.evaluator, "running")
        Accuracy().attach(training.evaluator, "accuracy")
        seen = []
        training.evaluator.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: seen.append(training.evaluator.state.metrics["running"])
        )
        training.evaluator.run(batches(), max_epochs=2)
        return seen, training.evaluator.state.metrics["accuracy"]

    seen, _ = outcome_of(program)
    assert len(seen) == 12
    assert len(set(seen)) > 2


@row("ignite", "MetricsLambda")
def test_metrics_lambda_computes_from_metrics_that_are_attached_or_not(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        precision, recall = Precision(average=False), Recall(average=False)
        precision.attach(training.evaluator, "precision")
        f1 = (precision * recall * 2 / (precision + recall + 1e-20)).mean()
        f1.attach(training.evaluator, "f1")
        MetricsLambda(lambda loss, factor: loss * factor, Loss(F.cross_entropy), 2.0).attach(
            training.evaluator, "twice"
        )
        Loss(F.cross_entropy).attach(training.evaluator, "loss")
        return dict(training.evaluator.run(batches()).metrics)

    metrics = outcome_of(program)
    assert metrics["twice"] == 2 * metrics["loss"]
    assert 0 < metrics["f1"] < 1
    assert "recall" not in metrics


@row("ignite", "MetricGroup")
def test_metric_group_puts_each_of_its_metrics_into_the_state(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        group = MetricGroup({"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)})
        group.attach(training.evaluator, "group")
        alone = Accuracy()
        alone.attach(training.evaluator, "alone")
        return dict(training.evaluator.run(batches()).metrics)

    metrics = outcome_of(program)
    assert metrics["group"] == {"accuracy": metrics["accuracy"], "loss": metrics["loss"]}
    assert metrics["alone"] == metrics["accuracy"]


@row("ignite", "EpochMetric")
def test_epoch_metric_gets_all_of_an_epochs_predictions(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        sizes = []

        def measure(predictions, targets):
            sizes.append(tuple(predictions.shape))
            return (predictions.argmax(1) == targets).float().mean().item()

        EpochMetric(measure, check_compute_fn=False).attach(training.evaluator, "share")
        Accuracy().attach(training.evaluator, "accuracy")
        metrics = dict(training.evaluator.run(batches(), max_epochs=2).metrics)
        return sizes, metrics

    sizes, metrics = outcome_of(program)
    assert sizes == [(48, 3), (48, 3)]
    assert metrics["share"] == pytest.approx(metrics["accuracy"])


@row("ignite", "Frequency")
def test_frequency_counts_what_the_output_says(outcome_of) -> None:
    def program(engine_class, directory):
        engine = engine_class(lambda engine, batch: {"words": 3 * batch})
        frequency = Frequency(output_transform=lambda output: output["words"])
        frequency.attach(engine, "words per second", event_name=Events.ITERATION_COMPLETED(every=2))
        engine.run([1, 2, 3, 4], max_epochs=1)
        return frequency._n, engine.state.metrics["words per second"] > 0

    assert outcome_of(program) == (30, True)


@row("ignite", "metrics, detached")
def test_a_detached_metric_measures_no_more(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        accuracy = Accuracy()
        accuracy.attach(training.evaluator, "accuracy")
        attached = accuracy.is_attached(training.evaluator)
        accuracy.detach(training.evaluator)
        return attached, accuracy.is_attached(training.evaluator), dict(training.evaluator.run(batches()).metrics)

    assert outcome_of(program) == (True, False, {})


@row("ignite", "metrics, after an interrupt")
def test_an_interrupted_epoch_is_measured_whole(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        Accuracy().attach(training.evaluator, "accuracy")
        whole = training.evaluator.run(batches()).metrics["accuracy"]
        training.evaluator.add_event_handler(Events.ITERATION_COMPLETED(every=4), training.evaluator.interrupt)
        training.evaluator.run(batches())
        at_the_pause = training.evaluator.state.iteration
        return whole, at_the_pause, training.evaluator.run(batches()).metrics["accuracy"]

    whole, at_the_pause, in_parts = outcome_of(program)
    assert at_the_pause == 4
    assert in_parts == whole
