"""Fine-tunes a network of torchvision: layers frozen first and thawed later, with lower learning rates further down.

    python examples/finetune.py  # learns the digits 0 to 5, and then 6 to 9 from five pictures of each
    python examples/finetune.py --data-dir FOLDER --model resnet18 --weights DEFAULT

The second starts from torchvision's own weights, which it downloads, and learns your pictures: FOLDER has one folder
for each class.

Gradual unfreezing and discriminative learning rates: Howard and Ruder, "Universal language model fine-tuning for text
classification", ACL 2018. The head is trained alone for an epoch; then one more block is thawed with each, the last
first, and each block learns at 1 / 2.6 of the rate of the one above.

Without --data-dir it measures what pretraining is worth, and `transfer.png` is figure 2 of Yosinski et al., "How
transferable are features in deep neural networks?", NeurIPS 2014, at small scale: the accuracy on the new digits with
the first n of the pretrained blocks, frozen or fine-tuned, and the others begun anew. n = 0 is training from scratch.
Expect about 32 % from scratch, and 55 to 78 % with four or five blocks. The curves rise with n, and fine-tuned blocks
do better than frozen ones; with one seed and 106 pictures to test on they are rough.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.metrics import Accuracy
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from torchvision import datasets, models, transforms

from camshaft import Device, Engine, Evaluate, Events, Freeze, Metrics, OptimizerStep
from camshaft.contrib.datasets import images
from camshaft.engine.distributed import rank
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

NEW = 6  # the first digit that is not learned before
LEAST_ITERATIONS = 5  # of an epoch, where the pictures are few


def main() -> None:
    options = start(option_parser())
    data = folder(options) if options.data_dir else few_digits()

    # ------------------------------------------------------------------------------------------------ the research

    networks = networks_for(options, data.classes)

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pictures, labels = batch  # the networks share no weight: the gradient of the sum is each one's own
        return sum(F.cross_entropy(network(pictures), labels) for network in networks.values())

    def evaluation_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        pictures, labels = batch
        return {"labels": labels, **{name: network(pictures).float() for name, network in networks.items()}}

    blocks = {name: blocks_of(network) for name, network in networks.items()}
    freezes = [Freeze(*blocks[name][: int(name[7:])]) for name in networks if name.startswith("frozen_")]
    groups: list[dict[str, Any]] = [{"params": networks[name].parameters()} for name in networks if name != "gradual"]
    for below, block in enumerate(reversed(blocks["gradual"])):  # the head is 0 below itself
        groups.append({"params": block.parameters(), "lr": options.lr / 2.6**below})
        if below:
            freezes.append(Freeze(block, until_epoch=below))

    # ------------------------------------------------------------------------------------------------ the engineering

    train_loader = DataLoader(data.train, min(options.batch_size, len(data.train)), shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    evaluator = Engine(evaluation_step).attach(
        Metrics({name: Accuracy(lambda output, name=name: (output[name], output["labels"])) for name in networks}),
        Device(options.device),
    )
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        *freezes,
        Evaluate(evaluator, DataLoader(data.test, 128), at=Events.COMPLETED, prefix="test_", modules=networks.values()),
        *standard_handlers(options, optimizer=optimizer, **networks),
    )
    trainer.run(train_loader, max_epochs=options.max_epochs, epoch_length=max(len(train_loader), LEAST_ITERATIONS))
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    accuracy = {name: trainer.state.metrics[f"test_{name}"] for name in networks}
    print(f"\naccuracy on {len(data.test)} new pictures, after training on {len(data.train)}:")
    for name, share in accuracy.items():
        print(f"{name:10} {share:6.1%}")
    if not options.data_dir:
        print(f"picture    {plot(accuracy, options.run_dir / 'transfer.png')}")
    print(f"weights sha256: {weights_sha256(nn.ModuleDict(networks))}")


def networks_for(options: argparse.Namespace, classes: int) -> dict[str, nn.Module]:
    """What to fine-tune: one network for your pictures, or all those of the figure."""
    if options.data_dir:
        return {"gradual": model_for(options, classes, weights=options.weights)}
    pretrained = pretrain(options)
    networks = {"gradual": transferred(pretrained, options, classes, blocks=None)}
    for n in range(len(blocks_of(pretrained))):  # all but the head, which is of other classes
        for kind in ("frozen", "tuned") if n else ("scratch",):
            networks[f"{kind}_{n}"] = transferred(pretrained, options, classes, blocks=n)
    return networks


def pretrain(options: argparse.Namespace) -> nn.Module:
    """A network that knows the digits 0 to 5, trained in a directory of its own."""
    options = argparse.Namespace(**{**vars(options), "run_dir": options.run_dir / "pretrained"})
    data, model = of_classes(images("digits").train, range(NEW)), model_for(options, NEW)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    trainer.attach(OptimizerStep(optimizer), *standard_handlers(options, model=model, optimizer=optimizer))
    trainer.run(
        DataLoader(data, options.batch_size, shuffle=True, drop_last=True), max_epochs=options.pretraining_epochs
    )
    return model


def model_for(options: argparse.Namespace, classes: int, weights: str | None = None) -> nn.Module:
    """A model of torchvision, with a last layer for these classes."""
    try:
        model = models.get_model(options.model, weights=weights)
        name, last = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"torchvision has no {options.model} with weights {weights} and a linear head") from error
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Linear(last.in_features, classes))
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a model of torchvision that have weights, from the picture to the head."""
    features = getattr(model, "features", None)
    parts = [part for part in model.children() if part is not features]
    parts = [*(features.children() if features is not None else ()), *parts]
    return [part for part in parts if any(True for _ in part.parameters())]


def transferred(pretrained: nn.Module, options: argparse.Namespace, classes: int, blocks: int | None) -> nn.Module:
    """A new model with the first so many blocks of a pretrained one; None: all but the head."""
    model = model_for(options, classes)
    for new, old in list(zip(blocks_of(model), blocks_of(pretrained), strict=True))[:-1][:blocks]:
        new.load_state_dict(old.state_dict())
    return model


class Data(NamedTuple):
    train: Dataset[Any]
    test: Dataset[Any]
    classes: int


def few_digits() -> Data:
    """Five pictures of each digit that was not learned before, and all that are held back."""
    digits = images("digits")
    train = of_classes(digits.train, range(NEW, 10))
    labels = train.tensors[1]
    few = torch.cat([(labels == digit).nonzero()[:5, 0] for digit in range(10 - NEW)])
    return Data(TensorDataset(*train[few]), of_classes(digits.test, range(NEW, 10)), 10 - NEW)


def of_classes(data: Dataset[Any], classes: range) -> TensorDataset:
    """Those pictures, in colour and four times as large as their pixels, labelled from 0 on."""
    pictures, labels = next(iter(DataLoader(data, batch_size=len(data))))
    chosen = (labels >= classes.start) & (labels < classes.stop)
    large = F.interpolate(pictures[chosen], scale_factor=4, mode="bilinear").expand(-1, 3, -1, -1)
    return TensorDataset(large.contiguous(), labels[chosen] - classes.start)


def folder(options: argparse.Namespace) -> Data:
    """The pictures in a folder, which has one folder for each class; a fifth of them to test with."""
    transform: Callable[..., Any] = transforms.Compose(
        [transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()]
    )
    if options.weights in (known := dict(models.get_model_weights(options.model).__members__)):
        transform = known[options.weights].transforms()
    pictures = datasets.ImageFolder(options.data_dir, transform)
    train, test = random_split(pictures, [0.8, 0.2], torch.Generator().manual_seed(0))
    return Data(train, test, len(pictures.classes))


def plot(accuracy: dict[str, float], path: Path) -> Path:
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    panel = figure.subplots()
    for kind, label in {"tuned": "then fine-tuned", "frozen": "then frozen"}.items():
        percent = {name[-1]: 100 * share for name, share in accuracy.items() if name.startswith((kind, "scratch"))}
        panel.plot(percent.keys(), percent.values(), "o-", label=f"first n pretrained, {label}")
    panel.axhline(100 * accuracy["gradual"], color="grey", linestyle="--", label="all pretrained, thawed one by one")
    panel.set(xlabel="n, the number of pretrained blocks", ylabel="accuracy on new classes (%)")
    panel.legend()
    panel.grid(alpha=0.3)
    figure.savefig(path)
    return path


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=8, batch_size=32, threads=1)
    parser.add_argument("--model", default="shufflenet_v2_x0_5", help="of torchvision, by its name there")
    parser.add_argument("--data-dir", type=Path, help="a folder of your pictures, with one folder for each class")
    parser.add_argument("--weights", help="those of torchvision, as DEFAULT; with --data-dir")
    parser.add_argument("--pretraining-epochs", type=number(int, least=1), default=8, help="on the digits 0 to 5")
    parser.add_argument("--lr", type=number(float, least=0), default=5e-3, help="the largest learning rate")
    return parser


if __name__ == "__main__":
    run_script(main)
