"""Trains a teacher on digits, and small students on its soft targets, one of which never sees a 3.

    python examples/distillation.py                               # scikit-learn's 1,797 digits, which come with it
    python examples/distillation.py --dataset mnist --hidden 800  # downloads MNIST; the paper's sizes
        --teacher-hidden 1200

G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning Workshop. It
repeats section 3, on MNIST: a large teacher is trained with dropout and moved pictures. The students see the pictures
as they are: one alone with the labels, one with the teacher's probabilities at a high temperature, and one, `deprived`,
with these but without any 3. `omitted.png` shows what the last one recognises when the bias of the 3 is raised; how far
that should be is chosen on validation data.

Expect 97 % of new digits to be recognised by the teacher and by both students, whom so few pictures do not tell apart.
Of the 3s that it never saw the deprived student recognises 70 %, and nearly all once that one number is set right.
"""

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.metrics import Accuracy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from camshaft import Device, Engine, Evaluate, Metrics, OptimizerStep
from camshaft.contrib.datasets import IMAGES, images
from camshaft.contrib.pictures import jittered
from camshaft.engine.distributed import rank
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

OMITTED = 3
RAISES = torch.arange(0, 15, 0.1)  # of the omitted class's bias


def main() -> None:
    options = start(option_parser())
    data = images(options.dataset, options.data_dir)

    # ------------------------------------------------------------------------------------------------ the research

    teacher = network(data.shape, options.teacher_hidden, data.classes, dropout=0.3)
    alone = network(data.shape, options.hidden, data.classes)
    distilled, deprived = copy.deepcopy(alone), copy.deepcopy(alone)
    networks = {"teacher": teacher, "alone": alone, "distilled": distilled, "deprived": deprived}

    def step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        pictures, labels = batch
        if engine.state.epoch <= options.teacher_epochs:
            loss = F.cross_entropy(teacher(jittered(pictures, pixels=data.shape[-1] / 16)), labels)
            teacher_step(loss)
            return {"teacher_loss": loss.detach()}
        teacher.eval()
        with torch.no_grad():
            targets = teacher(pictures)
        seen = labels != OMITTED
        losses = {
            "alone_loss": F.cross_entropy(alone(pictures), labels),
            "distilled_loss": soft_loss(distilled(pictures), targets, options.temperature),
            "deprived_loss": soft_loss(deprived(pictures[seen]), targets[seen], options.temperature),
        }
        students_step(sum(losses.values()))  # of which each reaches its own student only
        return {name: loss.detach() for name, loss in losses.items()}

    def evaluation_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        pictures, labels = batch
        return {"labels": labels} | {name: network(pictures) for name, network in networks.items()}

    # ------------------------------------------------------------------------------------------------ the engineering

    train_loader = DataLoader(data.train, batch_size=options.batch_size, shuffle=True, drop_last=True)
    val_loader = DataLoader(data.validation, batch_size=256)
    teacher_optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
    students_optimizer = torch.optim.AdamW(
        [weight for student in (alone, distilled, deprived) for weight in student.parameters()], lr=3e-3
    )
    teacher_step, students_step = OptimizerStep(teacher_optimizer), OptimizerStep(students_optimizer)
    accuracies = {
        name: Accuracy(output_transform=lambda output, name=name: (output[name], output["labels"])) for name in networks
    }
    evaluator = Engine(evaluation_step).attach(Metrics(accuracies), Device(options.device))

    trainer = Engine(step).attach(
        teacher_step,
        students_step,
        Evaluate(evaluator, val_loader, modules=networks.values()),
        *standard_handlers(
            options, **networks, teacher_optimizer=teacher_optimizer, students_optimizer=students_optimizer
        ),
    )
    trainer.run(train_loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    accuracy = {}
    for name, trained in networks.items():
        accuracy[name], of_omitted = shares_recognised(*predictions(trained.cpu().eval(), data.test))
        print(f"{name:<10} {accuracy[name]:7.2%} of {len(data.test)} new pictures, {of_omitted:7.2%} of the {OMITTED}s")

    logits, labels = predictions(deprived, data.validation)
    by = max(RAISES, key=lambda by: shares_recognised(raised(logits, by), labels)[0])
    logits, labels = predictions(deprived, data.test)
    overall, of_omitted = shares_recognised(raised(logits, by), labels)
    print(f"{'corrected':<10} {overall:7.2%} of {len(data.test)} new pictures, {of_omitted:7.2%} of the {OMITTED}s")
    print(f"the bias of the {OMITTED} is raised by {by:.1f}")
    curves = torch.tensor([shares_recognised(raised(logits, by), labels) for by in RAISES])
    print(f"picture    {draw(curves, by, accuracy, options.run_dir / 'omitted.png')}")
    print(f"weights sha256: {weights_sha256(nn.ModuleDict(networks))}")


def network(shape: tuple[int, int, int], hidden: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(torch.Size(shape).numel(), hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )


def soft_loss(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence from the targets' softened probabilities; squared, the temperature leaves gradients their size."""
    log_probabilities = F.log_softmax(logits / temperature, dim=1)
    log_targets = F.log_softmax(targets / temperature, dim=1)
    return temperature**2 * F.kl_div(log_probabilities, log_targets, log_target=True, reduction="batchmean")


@torch.no_grad()
def predictions(model: nn.Module, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (pictures, classes) and labels of all the data."""
    pictures, labels = next(iter(DataLoader(data, batch_size=len(data))))
    return model(pictures), labels


def raised(logits: torch.Tensor, by: float) -> torch.Tensor:
    """What they are with a greater bias of the class that was left out."""
    return logits + by * F.one_hot(torch.tensor(OMITTED), logits.shape[1])


def shares_recognised(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Of all pictures, and of those of the class that was left out."""
    right = (logits.argmax(1) == labels).float()
    return float(right.mean()), float(right[labels == OMITTED].mean())


def draw(curves: torch.Tensor, chosen: float, accuracy: Mapping[str, float], path: Path) -> Path:
    """The shares recognised without any example of a class, against what is added to its bias."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    panel = figure.subplots()
    panel.plot(RAISES, 100 * curves[:, 0], label="all digits, distilled without any 3")
    panel.plot(RAISES, 100 * curves[:, 1], label="the 3s among them")
    for name, line in (("teacher", "--"), ("alone", ":")):
        panel.axhline(100 * accuracy[name], color="grey", linestyle=line, label=f"all digits, {name}")
    panel.axvline(chosen, color="black", linewidth=1, label="chosen on validation data")
    panel.set(xlabel=f"added to the bias of the {OMITTED} (nats)", ylabel="recognised (%)", ylim=(0, 102))
    panel.legend()
    figure.savefig(path)
    return path


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=90, batch_size=64, threads=1)
    positive = number(int, least=1)
    parser.add_argument("--teacher-epochs", type=positive, default=30, help="the first ones; the rest is the students'")
    parser.add_argument("--teacher-hidden", type=positive, default=512, help="units of each of the teacher's layers")
    parser.add_argument("--hidden", type=positive, default=64, help="units of each of a student's layers")
    parser.add_argument("--temperature", type=number(float, least=1), default=4)
    parser.add_argument("--dataset", choices=IMAGES, default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    return parser


if __name__ == "__main__":
    run_script(main)
