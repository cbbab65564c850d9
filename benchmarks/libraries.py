"""The same training by hand, with Camshaft and with each peer, used as its documentation says.

``full_set.py`` and ``whole_runs.py`` time these. Each function trains as a :class:`Training` says and gives a
:class:`Trained`: the same seeds and batches, the same mathematics, and the same numbers shown, written and kept. A
concern that the training leaves out is neither computed nor attached.
"""

# A peer is imported when it is used, since it may be missing; each way to train is told whole, in one function.
# ruff: noqa: C901, E402, PLC0415, PLR0912, PLR0915

from __future__ import annotations

import contextlib
import copy
import csv
import importlib
import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]  # where `lightning` is not Lightning
os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

LOG_EVERY = 50  # iterations
EMA_DECAY = 0.999
NEVER = 10**6  # the patience of an early stopping that looks and never stops
Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Batches in memory, in the same order each time; a class, since to Lightning a list is several loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def restart(self) -> None:
        """Begin with the first epoch again."""


class ShuffledBatches(Batches):
    """Batches of tensors in memory, in an order that changes each epoch and is the same in each training."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor, size: int) -> None:
        self.inputs, self.labels, self.size = inputs, labels, size
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(self.epoch))
        for number, indices in enumerate(order.split(self.size)[: len(self)], 1):
            self.epoch += number == len(self)  # not behind the loop: who knows the length leaves after the last batch
            yield self.inputs[indices], self.labels[indices].flatten()

    def __len__(self) -> int:
        return len(self.inputs) // self.size

    def restart(self) -> None:
        self.epoch = 0

    def cut(self, batches: int) -> None:
        """Leave no more than so many batches in an epoch."""
        self.inputs, self.labels = self.inputs[: batches * self.size], self.labels[: batches * self.size]


@dataclass
class Training:
    """What to train, and which concerns take part.

    Attributes:
        model: trained from these weights; each training takes a copy.
        optimizer: makes one for parameters.
        train: one epoch.
        val: what is validated on after each epoch, where ``validation`` says so.
        epochs: how many.
        schedule: makes the schedule of an optimizer, in optimizer steps.
        accumulation: batches in one optimizer step.
        clipping: the largest norm of gradients.
        bf16: mixed precision.
        log: the loss each 50 iterations into a CSV file.
        bar: a progress bar with the loss.
        validation: loss and accuracy after each epoch.
        early_stopping: watches the validation's loss; never stops, so that all train equally long.
        checkpoint: all that is needed to go on, after each epoch.
        ema: a moving average of the weights; by hand and with Camshaft only.
        nan_guard: a loss that is not finite ends the training; by hand and with Camshaft only.
    """

    model: nn.Module
    optimizer: Callable[[Any], torch.optim.Optimizer]
    train: Batches
    val: Batches
    epochs: int = 1
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    accumulation: int = 1
    clipping: float | None = None
    bf16: bool = False
    log: bool = False
    bar: bool = False
    validation: bool = False
    early_stopping: bool = False
    checkpoint: bool = False
    ema: bool = False
    nan_guard: bool = False

    @property
    def iterations(self) -> int:
        return self.epochs * len(self.train)

    def begin(self) -> tuple[Any, torch.optim.Optimizer, Any]:
        """A model, its optimizer and its schedule or None, from the same seed each time."""
        torch.manual_seed(0)
        self.train.restart()
        model = copy.deepcopy(self.model)
        optimizer = self.optimizer(model.parameters())
        return model, optimizer, self.schedule(optimizer) if self.schedule is not None else None


@dataclass
class Trained:
    """How a training went.

    Attributes:
        model: trained.
        seconds: it took, from the construction of what the library wants to the end of the training.
        validated: after each epoch the seconds since the beginning, the loss and the accuracy.
    """

    model: nn.Module
    validated: list[tuple[float, float, float]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def note(self, loss: float, accuracy: float) -> None:
        """A validation is over."""
        self.validated.append((time.perf_counter() - self.began, loss, accuracy))

    def end(self) -> Trained:
        """The training is over."""
        self.seconds = time.perf_counter() - self.began
        return self

    def same_weights(self, other: Trained) -> bool:
        """Whether the weights of both are equal to the bit."""
        return all(map(torch.equal, self.model.parameters(), other.model.parameters()))


class Terminal(io.StringIO):
    """What a progress bar takes for a terminal."""

    def isatty(self) -> bool:
        return True


# ---------------------------------------------------------------------------------------------------- by hand


def by_hand(training: Training, directory: Path) -> Trained:
    """The loop that one writes without any library."""
    model, optimizer, schedule = training.begin()
    trained = Trained(model)
    group = training.accumulation
    iteration, best, without_improvement = 0, float("inf"), 0
    weights = [parameter.detach() for parameter in model.parameters()]
    averages = [weight.clone() for weight in weights]
    with contextlib.ExitStack() as stack:
        if training.log:
            table = csv.writer(stack.enter_context((directory / "metrics.csv").open("w", newline="")))
            table.writerow(["iteration", "epoch", "learning_rate", "loss", "val_loss", "val_accuracy"])
        for epoch in range(1, training.epochs + 1):
            batches: Any = training.train
            if training.bar:
                batches = tqdm(batches, f"epoch {epoch}/{training.epochs}", file=Terminal(), leave=True)
            for inputs, labels in batches:
                iteration += 1
                if training.bf16:
                    with torch.autocast("cpu", torch.bfloat16):
                        loss = F.cross_entropy(model(inputs), labels)
                else:
                    loss = F.cross_entropy(model(inputs), labels)
                (loss / group if group > 1 else loss).backward()
                if iteration % group == 0:
                    if training.clipping is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), training.clipping)
                    optimizer.step()
                    optimizer.zero_grad()
                    if schedule is not None:
                        schedule.step()
                    if training.ema:
                        torch._foreach_lerp_(averages, weights, 1 - EMA_DECAY)
                if training.nan_guard and not math.isfinite(loss.item()):
                    raise ArithmeticError(f"The loss is {loss.item()} after iteration {iteration}.")
                if iteration % LOG_EVERY == 0:
                    if training.log:
                        table.writerow([iteration, epoch, optimizer.param_groups[0]["lr"], loss.item(), "", ""])
                    if training.bar:
                        batches.set_postfix(loss=loss.item(), refresh=False)
            if training.validation:
                val_loss, val_accuracy = validated_by_hand(training, model)
                trained.note(val_loss, val_accuracy)
                if training.log:
                    table.writerow([iteration, epoch, "", "", val_loss, val_accuracy])
                if training.early_stopping:
                    best, without_improvement = (val_loss, 0) if val_loss < best else (best, without_improvement + 1)
                    if without_improvement >= NEVER:
                        break
            if training.checkpoint:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict() if schedule is not None else None,
                    "generator": torch.get_rng_state(),
                    "epoch": epoch,
                    "early_stopping": (best, without_improvement),
                }
                save_by_hand(state, directory / "checkpoint.pt")
    return trained.end()


def validated_by_hand(training: Training, model: nn.Module) -> tuple[float, float]:
    """The loss and the accuracy over the validation's batches."""
    model.eval()
    total_loss, correct, samples = torch.zeros(()), torch.zeros((), dtype=torch.long), 0
    with torch.inference_mode():
        for inputs, labels in training.val:
            if training.bf16:
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model(inputs)
                logits = logits.float()
            else:
                logits = model(inputs)
            total_loss += F.cross_entropy(logits, labels) * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            samples += len(labels)
    model.train()
    return total_loss.item() / samples, correct.item() / samples


def save_by_hand(state: dict[str, Any], path: Path) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one."""
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


# ---------------------------------------------------------------------------------------------------- Camshaft


def camshaft(training: Training, directory: Path) -> Trained:
    """Camshaft's engine, and one handler for each concern."""
    from ignite.metrics import Accuracy, Loss

    from camshaft import (
        AMP,
        EMA,
        Checkpoint,
        CSVLogger,
        EarlyStopping,
        Engine,
        Evaluate,
        Events,
        GradientAccumulation,
        GradientClipping,
        LRScheduler,
        Metrics,
        OptimizerStep,
        ProgressBar,
        TerminateOnNaN,
    )

    model, optimizer, schedule = training.begin()
    trained = Trained(model)

    def training_step(engine: Engine, batch: Batch) -> torch.Tensor:
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)

    def evaluation_step(engine: Engine, batch: Batch) -> Batch:
        inputs, labels = batch
        return model(inputs).float(), labels

    trainer = Engine(training_step).attach(OptimizerStep(optimizer))
    if training.accumulation > 1:
        trainer.attach(GradientAccumulation(training.accumulation))
    if training.clipping is not None:
        trainer.attach(GradientClipping(training.clipping))
    if schedule is not None:
        trainer.attach(LRScheduler(schedule, per="step"))
    if training.bf16:
        trainer.attach(AMP("bf16"))
    if training.log:
        trainer.attach(CSVLogger(directory, every=LOG_EVERY))
    if training.bar:
        trainer.attach(ProgressBar(file=Terminal()))
    if training.validation:
        evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)))
        if training.bf16:
            evaluator.attach(AMP("bf16"))
        trainer.attach(Evaluate(evaluator, training.val))
        metrics = trainer.state.metrics
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: trained.note(metrics["val_loss"], metrics["val_accuracy"])
        )
    if training.early_stopping:
        trainer.attach(EarlyStopping("val_loss", patience=NEVER))
    if training.checkpoint:
        trainer.attach(Checkpoint(directory, model=model, optimizer=optimizer))
    if training.ema:
        trainer.attach(EMA(model, decay=EMA_DECAY))
    if training.nan_guard:
        trainer.attach(TerminateOnNaN())
    trainer.run(training.train, max_epochs=training.epochs)
    return trained.end()


# ---------------------------------------------------------------------------------------------------- Ignite


def ignite(training: Training, directory: Path) -> Trained:
    """Stock Ignite: the step does what handlers do not; its bar gets the loss each iteration, as its examples show."""
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping, ProgressBar
    from ignite.metrics import Accuracy, Loss

    model, optimizer, schedule = training.begin()
    trained = Trained(model)
    group = training.accumulation

    def training_step(engine: Engine, batch: Batch) -> float | torch.Tensor:
        model.train()
        inputs, labels = batch
        with torch.autocast("cpu", torch.bfloat16, enabled=training.bf16):
            loss = F.cross_entropy(model(inputs), labels)
        (loss / group if group > 1 else loss).backward()
        if engine.state.iteration % group == 0:
            if training.clipping is not None:
                nn.utils.clip_grad_norm_(model.parameters(), training.clipping)
            optimizer.step()
            optimizer.zero_grad()
            if schedule is not None:
                schedule.step()
        return loss.item()

    def evaluation_step(engine: Engine, batch: Batch) -> Batch:
        model.eval()
        inputs, labels = batch
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=training.bf16):
            return model(inputs).float(), labels

    trainer = Engine(training_step)
    with contextlib.ExitStack() as stack:
        if training.log:
            table = csv.writer(stack.enter_context((directory / "metrics.csv").open("w", newline="")))

            @trainer.on(Events.ITERATION_COMPLETED(every=LOG_EVERY))
            def log(engine: Engine) -> None:
                state = engine.state
                table.writerow([state.iteration, state.epoch, optimizer.param_groups[0]["lr"], state.output, "", ""])

        if training.bar:
            ProgressBar(file=Terminal()).attach(trainer, output_transform=lambda loss: {"loss": loss})
        if training.validation:
            evaluator = Engine(evaluation_step)
            Accuracy().attach(evaluator, "accuracy")
            Loss(F.cross_entropy).attach(evaluator, "loss")

            @trainer.on(Events.EPOCH_COMPLETED)
            def validate(engine: Engine) -> None:
                metrics = evaluator.run(training.val).metrics
                trained.note(metrics["loss"], metrics["accuracy"])
                if training.log:
                    state = engine.state
                    table.writerow([state.iteration, state.epoch, "", "", metrics["loss"], metrics["accuracy"]])

            if training.early_stopping:
                stopping = EarlyStopping(NEVER, lambda engine: -engine.state.metrics["loss"], trainer)
                evaluator.add_event_handler(Events.COMPLETED, stopping)
        if training.checkpoint:
            to_save = {"model": model, "optimizer": optimizer, "trainer": trainer}
            if schedule is not None:
                to_save["schedule"] = schedule
            saver = Checkpoint(to_save, DiskSaver(directory, require_empty=False), n_saved=2)
            trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
        trainer.run(training.train, max_epochs=training.epochs)
    return trained.end()


# ---------------------------------------------------------------------------------------------------- Lightning


def lightning(training: Training, directory: Path) -> Trained:
    """A LightningModule and its Trainer; what the training leaves out is switched off."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    model, optimizer, schedule = training.begin()
    trained = Trained(model)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            inputs, labels = batch
            loss = F.cross_entropy(self.model(inputs), labels)
            if training.log or training.bar:
                self.log("loss", loss, prog_bar=training.bar, logger=training.log)
            return loss

        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            inputs, labels = batch
            logits = self.model(inputs).float()
            correct = (logits.argmax(1) == labels).float().mean()
            self.log("val_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
            self.log("val_accuracy", correct, batch_size=len(labels))

        def on_validation_epoch_end(self) -> None:
            metrics = self.trainer.callback_metrics
            trained.note(metrics["val_loss"].item(), metrics["val_accuracy"].item())

        def configure_optimizers(self) -> Any:
            if schedule is None:
                return optimizer
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    callbacks: list[Any] = []
    if training.early_stopping:
        callbacks.append(EarlyStopping("val_loss", patience=NEVER))
    if training.checkpoint:
        callbacks.append(ModelCheckpoint(directory))
    with quiet():
        trainer = pl.Trainer(
            max_epochs=training.epochs,
            accelerator="cpu",
            default_root_dir=directory,
            logger=CSVLogger(directory) if training.log else False,
            log_every_n_steps=LOG_EVERY,
            callbacks=callbacks,
            enable_checkpointing=training.checkpoint,
            enable_progress_bar=training.bar,
            enable_model_summary=False,
            accumulate_grad_batches=training.accumulation,
            gradient_clip_val=training.clipping,
            precision="bf16-mixed" if training.bf16 else "32-true",
            num_sanity_val_steps=0,
        )
        trainer.fit(Module(), training.train, training.val if training.validation else None)
    return trained.end()


def fabric(training: Training, directory: Path) -> Trained:
    """The loop by hand, with Lightning Fabric's calls in it."""
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import CSVLogger

    model, optimizer, schedule = training.begin()
    trained = Trained(model)
    group, best = training.accumulation, float("inf")
    with quiet():
        fabric = Fabric(
            accelerator="cpu",
            devices=1,
            precision="bf16-mixed" if training.bf16 else "32-true",
            loggers=CSVLogger(directory) if training.log else None,
        )
        wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
        iteration = 0
        for epoch in range(1, training.epochs + 1):
            batches: Any = tqdm(training.train, f"epoch {epoch}", file=Terminal()) if training.bar else training.train
            for inputs, labels in batches:
                iteration += 1
                is_accumulating = iteration % group != 0
                with fabric.no_backward_sync(wrapped, enabled=is_accumulating):
                    loss = F.cross_entropy(wrapped(inputs), labels)
                    fabric.backward(loss / group if group > 1 else loss)
                if not is_accumulating:
                    if training.clipping is not None:
                        fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=training.clipping)
                    wrapped_optimizer.step()
                    wrapped_optimizer.zero_grad()
                    if schedule is not None:
                        schedule.step()
                if iteration % LOG_EVERY == 0:
                    if training.log:
                        fabric.log("loss", loss.item(), iteration)
                    if training.bar:
                        batches.set_postfix(loss=loss.item(), refresh=False)
            if training.validation:
                val_loss, val_accuracy = validated_by_hand(training, model)
                trained.note(val_loss, val_accuracy)
                if training.log:
                    fabric.log_dict({"val_loss": val_loss, "val_accuracy": val_accuracy}, iteration)
                best = min(best, val_loss)
            if training.checkpoint:
                state = {"model": wrapped, "optimizer": wrapped_optimizer, "epoch": epoch, "best": best}
                fabric.save(directory / "checkpoint.ckpt", state)
    return trained.end()


# ---------------------------------------------------------------------------------------------------- Accelerate


def accelerate(training: Training, directory: Path) -> Trained:
    """The loop by hand, with Accelerate's calls in it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model, optimizer, schedule = training.begin()
    trained = Trained(model)
    best, iteration = float("inf"), 0
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may have another precision each time
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16" if training.bf16 else "no",
        gradient_accumulation_steps=training.accumulation,
        project_dir=directory,
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if schedule is not None:
        schedule = accelerator.prepare(schedule)
    with contextlib.ExitStack() as stack:
        if training.log:
            table = csv.writer(stack.enter_context((directory / "metrics.csv").open("w", newline="")))
        for epoch in range(1, training.epochs + 1):
            batches: Any = tqdm(training.train, f"epoch {epoch}", file=Terminal()) if training.bar else training.train
            for inputs, labels in batches:
                iteration += 1
                with accelerator.accumulate(prepared):
                    loss = F.cross_entropy(prepared(inputs), labels)
                    accelerator.backward(loss)
                    if training.clipping is not None and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(prepared.parameters(), training.clipping)
                    optimizer.step()
                    if schedule is not None:
                        schedule.step()
                    optimizer.zero_grad()
                if iteration % LOG_EVERY == 0:
                    if training.log:
                        table.writerow([iteration, epoch, optimizer.param_groups[0]["lr"], loss.item(), "", ""])
                    if training.bar:
                        batches.set_postfix(loss=loss.item(), refresh=False)
            if training.validation:
                val_loss, val_accuracy = validated_by_hand(training, model)
                trained.note(val_loss, val_accuracy)
                if training.log:
                    table.writerow([iteration, epoch, "", "", val_loss, val_accuracy])
                best = min(best, val_loss)
            if training.checkpoint:
                accelerator.save_state(directory / "checkpoint")
    return trained.end()


# ---------------------------------------------------------------------------------------------------- TorchTNT


def torchtnt(training: Training, directory: Path) -> Trained:
    """An AutoUnit and ``fit``, with its callbacks."""
    from torchtnt.framework.auto_unit import AutoUnit
    from torchtnt.framework.callback import Callback
    from torchtnt.framework.callbacks import TQDMProgressBar
    from torchtnt.framework.fit import fit
    from torchtnt.framework.state import State
    from torchtnt.framework.train import train
    from torchtnt.utils.early_stop_checker import EarlyStopChecker
    from torchtnt.utils.loggers import CSVLogger
    from torchtnt.utils.lr_scheduler import TLRScheduler

    model, optimizer, schedule = training.begin()
    trained = Trained(model)

    class Unit(AutoUnit[Batch]):
        def __init__(self) -> None:
            super().__init__(
                module=model,
                device=torch.device("cpu"),
                precision="bf16" if training.bf16 else None,
                gradient_accumulation_steps=training.accumulation,
                clip_grad_norm=training.clipping,
                step_lr_interval="step",
            )
            self.total_loss, self.correct, self.samples = torch.zeros(()), torch.zeros(()), 0
            self.stopping = EarlyStopChecker("min", patience=NEVER)

        def configure_optimizers_and_lr_scheduler(
            self, module: nn.Module
        ) -> tuple[torch.optim.Optimizer, TLRScheduler | None]:
            return optimizer, schedule

        def compute_loss(self, state: State, data: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            inputs, labels = data
            logits = self.module(inputs)
            return F.cross_entropy(logits, labels), logits

        def on_eval_step_end(
            self, state: State, data: Batch, step: int, loss: torch.Tensor, outputs: torch.Tensor
        ) -> None:
            labels = data[1]
            self.total_loss += loss * len(labels)
            self.correct += (outputs.argmax(1) == labels).sum()
            self.samples += len(labels)

        def on_eval_epoch_end(self, state: State) -> None:
            loss, accuracy = self.total_loss.item() / self.samples, self.correct.item() / self.samples
            trained.note(loss, accuracy)
            if training.early_stopping:
                self.stopping.check(torch.tensor(loss))
            self.total_loss, self.correct, self.samples = torch.zeros(()), torch.zeros(()), 0

    class Log(Callback):
        def __init__(self) -> None:
            self.logger = CSVLogger(str(directory / "metrics.csv"), steps_before_flushing=NEVER)

        def on_train_step_end(self, state: State, unit: Any) -> None:
            step = unit.train_progress.num_steps_completed
            if step % LOG_EVERY == 0:
                self.logger.log("loss", state.train_state.step_output[0].item(), step)

        def on_train_end(self, state: State, unit: Any) -> None:
            self.logger.close()

    class Save(Callback):
        """What its TorchSnapshotSaver would do, which wants another package: its units know their state."""

        def on_train_epoch_end(self, state: State, unit: Any) -> None:
            app_state = {name: part.state_dict() for name, part in unit.app_state().items()}
            torch.save(app_state, directory / "checkpoint.pt")

    callbacks: list[Callback] = []
    if training.log:
        callbacks.append(Log())
    if training.bar:
        callbacks.append(TQDMProgressBar(file=Terminal()))
    if training.checkpoint:
        callbacks.append(Save())
    with quiet():
        unit = Unit()
        if training.validation:
            fit(unit, training.train, training.val, max_epochs=training.epochs, callbacks=callbacks)
        else:
            train(unit, training.train, max_epochs=training.epochs, callbacks=callbacks)
    return trained.end()


# ---------------------------------------------------------------------------------------------------- Keras


def keras(training: Training, directory: Path) -> Trained:
    """Keras 3 on torch: the model in its ``TorchModuleWrapper``, its own optimizer, ``fit`` with callbacks.

    Always in float32: a wrapped module cannot take the inputs that its mixed precision makes.
    """
    import keras

    model, optimizer, schedule = training.begin()
    trained = Trained(model)

    class Data(keras.utils.PyDataset):
        def __init__(self, batches: Batches) -> None:
            super().__init__()
            self.batches = batches

            self.epoch: list[Batch] = []

        def on_epoch_end(self) -> None:
            self.epoch = []

        def __len__(self) -> int:
            return len(self.batches)

        def __getitem__(self, index: int) -> Batch:
            self.epoch = self.epoch or list(self.batches)
            return self.epoch[index]

    class Log(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.table = csv.writer(open(directory / "metrics.csv", "w", newline=""))  # noqa: PTH123, SIM115

        def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
            if (batch + 1) % LOG_EVERY == 0:
                self.table.writerow([batch + 1, logs["loss"]])

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            trained.note(logs["val_loss"], logs["val_accuracy"])

    wrapped = keras.Sequential([keras.layers.TorchModuleWrapper(model)])
    group = optimizer.param_groups[0]
    rate: Any = group["lr"]
    if schedule is not None:  # the same values, of which Keras asks one for each step
        rates = [rate]
        for _ in range(training.iterations // training.accumulation):
            with warnings.catch_warnings(action="ignore"):
                schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])

        class Schedule(keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, step: Any) -> float:
                return rates[min(int(step) // training.accumulation, len(rates) - 1)]

        rate = Schedule()
    more: dict[str, Any] = {"learning_rate": rate}
    if training.clipping is not None:
        more["global_clipnorm"] = training.clipping
    if training.accumulation > 1:
        more["gradient_accumulation_steps"] = training.accumulation
    if isinstance(optimizer, torch.optim.AdamW):
        beta_1, beta_2 = group["betas"]
        more |= {"weight_decay": group["weight_decay"], "beta_1": beta_1, "beta_2": beta_2, "epsilon": group["eps"]}
        its_optimizer = keras.optimizers.AdamW(**more)
    else:
        its_optimizer = keras.optimizers.SGD(**more)
    callbacks: list[Any] = []
    if training.validation:
        callbacks.append(Note())
    if training.log:
        callbacks.append(Log())
    if training.early_stopping:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=NEVER))
    if training.checkpoint:
        callbacks.append(keras.callbacks.ModelCheckpoint(directory / "checkpoint.weights.h5", save_weights_only=True))
    with quiet():
        wrapped.compile(
            optimizer=its_optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"] if training.validation else None,
        )
        wrapped.fit(
            Data(training.train),
            epochs=training.epochs,
            verbose=1 if training.bar else 0,
            shuffle=False,
            callbacks=callbacks,
            validation_data=Data(training.val) if training.validation else None,
        )
    return trained.end()


# ---------------------------------------------------------------------------------------------------- all of them

Train = Callable[[Training, Path], Trained]

PEERS: dict[str, tuple[str, Train]] = {  # with the package that each needs
    "Ignite": ("ignite", ignite),
    "Fabric": ("lightning", fabric),
    "Accelerate": ("accelerate", accelerate),
    "TorchTNT": ("torchtnt", torchtnt),
    "Lightning": ("lightning", lightning),
    "Keras on torch": ("keras", keras),
}


def installed_peers() -> dict[str, Train]:
    """Those of the peers that are here; tells of the others."""
    installed = {}
    for name, (package, train) in PEERS.items():
        try:
            importlib.import_module(package)
        except Exception as error:  # noqa: BLE001 - one that is there may fail in many ways
            print(f"{name} is left out: {type(error).__name__}: {error}".splitlines()[0])
        else:
            installed[name] = train
    return installed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what is printed, into what looks like a terminal, so that bars are drawn; a real one would be slower."""
    with contextlib.redirect_stdout(Terminal()), contextlib.redirect_stderr(Terminal()):
        yield


def silence() -> None:
    """No warnings and no messages: peers have many."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
