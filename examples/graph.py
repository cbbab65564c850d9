"""Trains a graph convolutional network to tell the classes of all nodes from the labels of a few.

    python examples/graph.py                 # Zachary's karate club of 34, with one label for each of 4 groups
    python examples/graph.py --dataset cora  # downloads a network of citations: 2,708 papers, 140 of them labelled

Kipf and Welling, "Semi-supervised classification with graph convolutional networks", ICLR 2017. `embedding.png` is
their figure 3: where the network puts the members of the club in a plane, after so many iterations; those with a label
are ringed. Members are known by their number alone, so all there is to learn from are the links. Expect 24 of the 30
without a label in the right group; with only two dimensions that depends on the first weights, and other seeds bring 15
to 25. On Cora the paper has 81.5 % of 1,000 test nodes.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from ignite.metrics import Accuracy
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub, Planetoid
from torch_geometric.nn import GCNConv

from camshaft import Device, Engine, Evaluate, Events, Metrics, OptimizerStep
from camshaft.engine.distributed import rank
from camshaft.scripts import run_script, script_parser, standard_handlers, start, weights_sha256

ITERATIONS = 25  # of an epoch, each with the whole graph
SHOWN = (25, 50, 75, 100, 200, 300)


def main() -> None:
    options = start(option_parser())
    graph = load(options.dataset, options.data_dir)

    # ------------------------------------------------------------------------------------------------ the research

    if options.dataset == "karate":  # the paper's networks
        model, decay = Network([graph.num_features, 4, 4, 2], int(graph.y.max()) + 1, nn.Tanh()), 0.0
    else:
        model, decay = Network([graph.num_features, 16], int(graph.y.max()) + 1, nn.ReLU(), dropout=0.5), 5e-4

    def training_step(engine: Engine, graph: Data) -> torch.Tensor:
        scores, _ = model(graph)
        return F.cross_entropy(scores[graph.train_mask], graph.y[graph.train_mask])

    def evaluation_step(engine: Engine, graph: Data) -> tuple[torch.Tensor, torch.Tensor]:
        scores, _ = model(graph)
        return scores[graph.test_mask], graph.y[graph.test_mask]

    # ------------------------------------------------------------------------------------------------ the engineering

    optimizer = torch.optim.Adam(
        [{"params": model.hidden.parameters(), "weight_decay": decay}, {"params": model.last.parameters()}], lr=0.01
    )
    evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy()), Device(options.device))
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        Evaluate(evaluator, [graph], prefix="test_"),
        *standard_handlers(options, model=model, optimizer=optimizer),
    )

    @trainer.on(Events.EPOCH_COMPLETED)
    def keep_embedding() -> None:
        if rank() == 0:
            torch.save(in_a_plane(model, graph), options.run_dir / f"embedding-{trainer.state.iteration}.pt")

    trainer.run([graph] * ITERATIONS, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    accuracy, nodes = trainer.state.metrics["test_accuracy"], int(graph.test_mask.sum())
    print(f"\ntest accuracy  {accuracy:.1%} of {nodes} nodes whose labels were not used")
    print(f"picture        {plot(graph, options.run_dir)}")
    print(f"weights sha256: {weights_sha256(model)}")


class Network(nn.Module):
    """Graph convolutions of the given widths, and a last layer that tells the class."""

    def __init__(self, widths: list[int], classes: int, activation: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(GCNConv(*pair) for pair in pairwise(widths))
        self.last = nn.Linear(widths[-1], classes) if dropout == 0 else GCNConv(widths[-1], classes)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, graph: Data) -> tuple[torch.Tensor, torch.Tensor]:  # -> (nodes, classes), (nodes, widths[-1])
        x = graph.x
        for convolution in self.hidden:
            x = self.activation(convolution(self.dropout(x), graph.edge_index))
        dropped = self.dropout(x)
        return self.last(dropped, graph.edge_index) if isinstance(self.last, GCNConv) else self.last(dropped), x


def load(name: str, folder: Path) -> Data:
    if name == "karate":
        graph = KarateClub()[0]
        graph.test_mask = ~graph.train_mask
        return graph
    try:
        return Planetoid(str(folder), name.capitalize())[0]
    except Exception as error:  # of whatever kind a download fails with
        raise OSError(f"{name} could neither be loaded from {folder} nor downloaded: {error}") from error


@torch.no_grad()
def in_a_plane(model: Network, graph: Data) -> torch.Tensor:  # -> (nodes, 2)
    training = model.training
    embedding = model.eval()(graph.to(next(model.parameters()).device))[1].cpu()
    model.train(training)
    return embedding if embedding.shape[1] == 2 else embedding @ torch.linalg.svd(embedding)[2][:2].T


def plot(graph: Data, directory: Path) -> Path:
    """The embeddings that were kept, in the order of training."""
    graph = graph.cpu()
    shown = [iteration for iteration in SHOWN if (directory / f"embedding-{iteration}.pt").exists()]
    figure = Figure(figsize=(8, 5.4), dpi=100, layout="constrained")
    for panel, iteration in zip(figure.subplots(2, 3).flat, shown, strict=False):
        x, y = torch.load(directory / f"embedding-{iteration}.pt", weights_only=True).T
        panel.plot(x[graph.edge_index], y[graph.edge_index], color="0.85", linewidth=0.5, zorder=0)
        panel.scatter(x, y, c=graph.y, cmap="tab10", s=25 if len(x) < 100 else 1)
        if len(x) < 100:
            ringed = graph.train_mask
            panel.scatter(x[ringed], y[ringed], s=120, facecolors="none", edgecolors="black")
        panel.set(title=f"iteration {iteration}", xticks=[], yticks=[])
    figure.supxlabel(
        "first coordinate of the embedding (colours: classes; rings: nodes with a label)", fontsize="medium"
    )
    figure.supylabel("second coordinate", fontsize="medium")
    figure.savefig(directory / "embedding.png")
    return directory / "embedding.png"


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=12, batch_size=1, threads=1)
    parser.set_defaults(seed=2)
    parser.add_argument("--dataset", choices=("karate", "cora", "citeseer", "pubmed"), default="karate")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    return parser


if __name__ == "__main__":
    run_script(main)
