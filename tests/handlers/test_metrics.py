import pytest
import torch
import torchmetrics
from ignite.metrics import (
    Accuracy,
    Average,
    ConfusionMatrix,
    Loss,
    MetricsLambda,
    Precision,
    Recall,
    RunningAverage,
    mIoU,
)
from ignite.metrics.confusion_matrix import cmAccuracy
from ignite.metrics.metric import BatchFiltered
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_score
from torch.nn import functional as F

from camshaft.engine import Engine, Events
from camshaft.handlers import Checkpoint, Metrics


@pytest.fixture(scope="module")
def digits():
    """Batches of (logits, targets) for real digits, which are compared with the mean image of each digit."""
    images, targets = load_digits(return_X_y=True)
    images, targets = torch.tensor(images, dtype=torch.float32), torch.tensor(targets)
    templates = torch.stack([images[targets == digit].mean(0) for digit in range(10)])  # (digits, pixels)
    logits = -torch.cdist(images, templates) / 4  # (images, digits)
    return list(zip(logits.split(100), targets.split(100), strict=True))


@pytest.fixture(scope="module")
def joined(digits):
    logits, targets = map(torch.cat, zip(*digits, strict=True))
    return logits, targets


def identity(engine, batch):
    return batch


def interrupted():
    raise KeyboardInterrupt


class TestMetricsOfIgnite:
    def test_they_agree_with_scikit_learn(self, engine_of, digits, joined):
        logits, targets = joined
        precision, recall = Precision(average=False), Recall(average=False)
        metrics = Metrics(
            accuracy=Accuracy(),
            loss=Loss(F.cross_entropy),
            precision=Precision(average=True),
            f1=MetricsLambda(lambda p, r: (2 * p * r / (p + r)).mean().item(), precision, recall),
        )
        values = engine_of(identity, metrics).run(digits).metrics
        predictions = logits.argmax(1)
        assert values["accuracy"] == pytest.approx(accuracy_score(targets, predictions))
        assert values["loss"] == pytest.approx(log_loss(targets, logits.double().softmax(1)), abs=1e-5)
        assert values["precision"] == pytest.approx(precision_score(targets, predictions, average="macro"), abs=1e-6)
        assert values["f1"] == pytest.approx(f1_score(targets, predictions, average="macro"), abs=1e-6)

    def test_a_confusion_matrix_is_a_tensor(self, engine_of, digits, joined):
        logits, targets = joined
        value = engine_of(identity, Metrics(confusion=ConfusionMatrix(10))).run(digits).metrics["confusion"]
        assert value.tolist() == confusion_matrix(targets, logits.argmax(1)).tolist()

    def test_a_running_average_runs_over_the_batches_as_it_does_in_ignite(self, engine_of):
        metrics, seen = Metrics(loss=RunningAverage(output_transform=lambda output: output, alpha=0.5)), []
        engine = engine_of(identity, metrics)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.metrics["loss"]))
        engine.run([1.0, 3.0, 5.0], max_epochs=1)
        assert seen == [1.0, 2.0, 3.5]

    def test_a_running_average_of_a_metric_too(self, engine_of, digits):
        engine = engine_of(identity, Metrics(accuracy=RunningAverage(Accuracy(), alpha=1e-9)))
        logits, targets = digits[-1]
        assert engine.run(digits).metrics["accuracy"] == pytest.approx(
            accuracy_score(targets, logits.argmax(1)), abs=1e-6
        )

    @pytest.mark.parametrize("attached_by", ["Metrics", "Ignite"])
    def test_one_that_functions_make_of_others_is_kept_in_the_midst_of_an_epoch(
        self, engine_of, digits, tmp_path, attached_by
    ):
        def run(directory, *, stops=False):
            confusion = ConfusionMatrix(10)
            metrics = {"iou": mIoU(confusion), "accuracy": cmAccuracy(confusion)}  # whose state Ignite cannot make
            engine = engine_of(identity, *([Metrics(metrics)] if attached_by == "Metrics" else []))
            if attached_by == "Ignite":
                for name, metric in metrics.items():
                    metric.attach(engine, name)
            Checkpoint(directory, at=Events.ITERATION_COMPLETED(every=4)).attach(engine)
            if stops:
                engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), interrupted)
            return {name: float(engine.run(digits).metrics[name]) for name in metrics}

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed", stops=True)
        assert run(tmp_path / "resumed") == run(tmp_path / "whole")

    @pytest.mark.parametrize("usage", ["batch_wise", BatchFiltered(every=2)], ids=["batch wise", "every second batch"])
    def test_a_usage_tells_when_they_are_made(self, engine_of, usage):
        engine, seen = engine_of(identity, Metrics(mean=Average(output_transform=float), usage=usage)), []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.metrics.get("mean")))
        metrics = engine.run([1.0, 2.0, 3.0, 6.0], max_epochs=1).metrics
        if usage == "batch_wise":
            assert seen == [1.0, 2.0, 3.0, 6.0]
        else:
            assert metrics == {"mean": 4.0}

    @pytest.mark.parametrize("usage", [None, "batch_wise"])
    def test_a_batch_that_the_step_skips_is_not_measured(self, engine_of, usage):
        def step(engine, batch):
            return None if batch == 100.0 else batch

        metrics = Metrics(mean=Average(output_transform=float), usage=usage)
        values = engine_of(step, metrics).run([1.0, 100.0, 3.0, 100.0], max_epochs=1).metrics
        assert values["mean"] == (2.0 if usage is None else 3.0)

    def test_nor_does_it_enter_a_running_average(self, engine_of):
        metrics = Metrics(
            of_outputs=RunningAverage(output_transform=float, alpha=0.5),
            of_a_metric=RunningAverage(Average(output_transform=float), alpha=0.5),
        )
        engine = engine_of(lambda engine, batch: None if batch == 100.0 else batch, metrics)
        assert engine.run([1.0, 100.0, 3.0, 100.0], max_epochs=1).metrics == {"of_outputs": 2.0, "of_a_metric": 2.0}


class TestMetricsOfTorchmetrics:
    def test_they_agree_with_scikit_learn(self, engine_of, digits, joined):
        logits, targets = joined
        metrics = Metrics({"top accuracy": torchmetrics.Accuracy(task="multiclass", num_classes=10)})
        value = engine_of(identity, metrics).run(digits).metrics["top accuracy"]
        assert value.item() == pytest.approx(accuracy_score(targets, logits.argmax(1)))

    def test_a_collection_keeps_its_own_names(self, engine_of, digits, joined):
        logits, targets = joined
        collection = torchmetrics.MetricCollection(
            {
                "precision": torchmetrics.Precision(task="multiclass", num_classes=10, average="macro"),
                "f1": torchmetrics.F1Score(task="multiclass", num_classes=10, average="macro"),
            },
            prefix="digit_",
        )
        values = engine_of(identity, Metrics(scores=collection)).run(digits).metrics
        assert sorted(values) == ["digit_f1", "digit_precision"]
        assert values["digit_f1"].item() == pytest.approx(f1_score(targets, logits.argmax(1), average="macro"))

    def test_each_epoch_starts_anew(self, engine_of):
        engine, seen = engine_of(identity, Metrics(mean=torchmetrics.MeanMetric())), []
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(engine.state.metrics.get("mean")))
        engine.run([torch.tensor(1.0), torch.tensor(3.0)], max_epochs=2)
        assert seen == [None, torch.tensor(2.0)]
        assert engine.state.metrics["mean"] == 2.0

    def test_they_go_to_the_device_of_the_output(self, engine_of):
        metric = torchmetrics.MeanMetric(nan_strategy="disable")
        engine_of(identity, Metrics(mean=metric)).run([torch.ones(3, device="meta")])
        assert metric.device == torch.device("meta")

    def test_a_batch_that_the_step_skips_is_not_measured(self, engine_of):
        def step(engine, batch):
            return None if batch == 100.0 else batch

        values = torch.tensor([1.0, 100.0, 3.0])
        assert engine_of(step, Metrics(mean=torchmetrics.MeanMetric())).run(values).metrics["mean"] == 2.0

    def test_they_find_predictions_and_targets_in_a_mapping(self, engine_of, digits, joined):
        logits, targets = joined
        metric = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        engine = engine_of(lambda engine, batch: {"loss": 0.0, "y": batch[1], "y_pred": batch[0]}, Metrics(top=metric))
        assert engine.run(digits).metrics["top"].item() == pytest.approx(accuracy_score(targets, logits.argmax(1)))

    def test_a_mapping_without_them_is_refused(self, engine_of):
        engine = engine_of(lambda engine, batch: {"loss": 0.0}, Metrics(mean=torchmetrics.MeanMetric()))
        with pytest.raises(ValueError, match=r"'y_pred' and 'y'.*only \['loss'\].*output_transform"):
            engine.run([0])

    def test_an_output_transform_says_what_to_measure(self, engine_of):
        metrics = Metrics(loss=torchmetrics.MeanMetric(), output_transform=lambda output: output["loss"])
        assert engine_of(lambda engine, batch: {"loss": batch}, metrics).run([1.0, 2.0]).metrics["loss"] == 1.5


class TestBoth:
    def metrics(self):
        return Metrics(ignites=Average(output_transform=float), torchs=torchmetrics.MeanMetric())

    def test_they_can_be_given_together(self, engine_of):
        assert engine_of(identity, self.metrics()).run([1.0, 2.0]).metrics == {"ignites": 1.5, "torchs": 1.5}

    def test_they_are_made_before_functions_of_the_user_that_were_attached_earlier(self):
        engine, seen = Engine(identity), []
        for event in (Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, lambda: seen.append(sorted(engine.state.metrics)))
        running = Metrics(running=RunningAverage(output_transform=lambda output: output))
        engine.attach(self.metrics(), running).run([1.0])
        assert seen == [["running"], ["ignites", "running", "torchs"]]

    def test_it_tells_when_a_value_was_made(self, engine_of):
        collection = torchmetrics.MetricCollection({"largest": torchmetrics.MaxMetric()}, postfix="_seen")
        metrics = Metrics(
            ignites=Average(output_transform=float),
            running=RunningAverage(output_transform=float),
            torchs=torchmetrics.MeanMetric(),
            collected=collection,
        )
        names = "ignites", "running", "torchs", "largest_seen", "collected"
        engine, told = engine_of(identity, metrics), []
        told.append(tuple(map(metrics.produced_at, names)))
        for event in (Events.ITERATION_COMPLETED(once=4), Events.COMPLETED):
            engine.add_event_handler(event, lambda: told.append(tuple(map(metrics.produced_at, names))))
        engine.run([1.0, 2.0, 3.0], max_epochs=2)
        assert told == [(0, 0, 0, 0, None), (3, 4, 3, 3, None), (6, 6, 6, 6, None)]

    def test_after_detaching_it_nothing_is_measured(self, engine_of):
        metrics = Metrics(
            ignites=Average(output_transform=float),
            others=Average(output_transform=float),
            running=RunningAverage(Average(output_transform=float)),
            torchs=torchmetrics.MeanMetric(),
        )
        engine = engine_of(identity, metrics)
        metrics.detach(engine)
        assert engine.run([1.0]).metrics == {}
        assert not any(engine._event_handlers.values())

    def test_what_is_no_metric_is_refused(self):
        with pytest.raises(TypeError, match=r"'loss' is <function.*Average\(output_transform=...\)"):
            Metrics(loss=F.cross_entropy)
