"""`examples/graph.py` finds groups in a graph, and what it stands on: PyTorch Geometric's batches in an engine."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.metrics import Accuracy
from PIL import Image
from torch.nn import functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool
from torchmetrics.classification import MulticlassF1Score

from camshaft import Checkpoint, Device, Engine, Evaluate, Metrics, OptimizerStep
from tests.examples.running import Run, digest_of


@pytest.fixture
def graph(example: Callable[[str], Run]) -> Run:
    return example("graph.py")


def accuracy_of(out: str, nodes: int) -> float:
    pattern = rf"^test accuracy +([\d.]+)% of {nodes} nodes whose labels were not used$"
    return float(re.search(pattern, out, re.MULTILINE)[1])


def test_four_labels_are_enough_to_tell_most_of_the_club(graph: Run) -> None:
    ended = graph("--run-dir", "run")
    assert ended.status == 0
    assert accuracy_of(ended.out, 30) == pytest.approx(80, abs=7)  # of 30, two more or less
    with Image.open("run/embedding.png") as picture:
        assert picture.size == (800, 540)
    embeddings = {epoch: torch.load(f"run/embedding-{25 * epoch}.pt") for epoch in (1, 12)}
    assert embeddings[12].shape == (34, 2)
    assert embeddings[12].std(0).min() > 2 * embeddings[1].std(0).min()  # it comes apart


def test_a_run_that_goes_on_ends_in_the_same_bits(graph: Run) -> None:
    whole = graph("--max-epochs", "2", "--run-dir", "whole")
    for epochs in ("1", "2"):
        resumed = graph("--max-epochs", epochs, "--run-dir", "resumed")
    assert digest_of(resumed.out) == digest_of(whole.out)


def write_planetoid(folder: Path, name: str) -> None:
    """Three groups in the files of Planetoid: 30 labelled nodes, 500 to validate, 60 to test with."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = random.integers(3, size=590)
    features = (random.random((590, 12)) < 0.1 + 0.4 * (np.arange(12) % 3 == labels[:, None])).astype(np.float32)
    one_hot = np.eye(3, dtype=np.int32)[labels]
    friends = {node: random.choice(np.flatnonzero(labels == labels[node]), 3).tolist() for node in range(590)}
    tables = {
        "x": features[:30],
        "allx": features[:530],
        "tx": features[530:],
        "y": one_hot[:30],
        "ally": one_hot[:530],
        "ty": one_hot[530:],
        "graph": friends,
    }
    for ending, table in tables.items():
        (folder / f"ind.{name}.{ending}").write_bytes(pickle.dumps(table))
    (folder / f"ind.{name}.test.index").write_text("".join(f"{node}\n" for node in range(530, 590)))


def test_it_trains_on_the_files_of_planetoid(graph: Run) -> None:
    write_planetoid(Path("data/Cora/raw"), "cora")
    ended = graph("--dataset", "cora", "--data-dir", "data", "--max-epochs", "2", "--run-dir", "run")
    assert ended.status == 0, ended.err
    assert accuracy_of(ended.out, 60) > 80
    assert Path("run/embedding.png").exists()


def test_data_that_cannot_be_downloaded_gives_one_line_and_status_2(graph: Run, monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    ended = graph("--dataset", "cora", "--data-dir", "data", "--run-dir", "run")
    assert ended.status == 2
    (line,) = (line for line in ended.err.splitlines() if line.startswith("graph.py: "))
    assert "cora could neither be loaded from data nor downloaded" in line


# Batches of graphs


def chains_and_cliques() -> list[Data]:
    """Graphs of five to eight nodes, each of which is linked to the next one, or to all."""
    graphs = []
    for number in range(40):
        nodes, kind = torch.arange(5 + number % 4), number % 2
        links = torch.combinations(nodes).T if kind else torch.stack([nodes[:-1], nodes[1:]])
        edges = torch.cat([links, links.flip(0)], 1)
        graphs.append(Data(x=torch.ones(len(nodes), 1), edge_index=edges, y=torch.tensor(kind)))
    return graphs


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = GCNConv(1, 16, normalize=False)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, batch: Batch) -> torch.Tensor:  # -> (graphs, 2)
        nodes = self.convolution(batch.x, batch.edge_index).relu()
        return self.head(global_mean_pool(nodes, batch.batch))


def test_device_moves_a_batch_of_graphs_with_all_that_it_has() -> None:
    engine = Engine(lambda engine, batch: batch).attach(Device("meta"))
    batch = engine.run(DataLoader(chains_and_cliques(), batch_size=4)).output
    assert isinstance(batch, Batch)
    moved = {name: value.device.type for name, value in batch.to_dict().items() if isinstance(value, torch.Tensor)}
    assert moved == dict.fromkeys(("x", "edge_index", "y", "batch", "ptr"), "meta")


def train(directory: Path, max_epochs: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    evaluator = Engine(lambda engine, batch: (model(batch), batch.y))
    evaluator.attach(Metrics(accuracy=Accuracy(), f1=MulticlassF1Score(2, average="macro")), Device("cpu"))
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch), batch.y)).attach(
        OptimizerStep(optimizer),
        Evaluate(evaluator, DataLoader(chains_and_cliques(), batch_size=7)),
        Device("cpu"),
        Checkpoint(directory, model=model, optimizer=optimizer),
    )
    metrics = dict(
        trainer.run(DataLoader(chains_and_cliques(), batch_size=8, shuffle=True), max_epochs=max_epochs).metrics
    )
    return {**metrics, "weights": model.head.weight.tolist()}


def test_metrics_of_ignite_and_torchmetrics_measure_predictions_about_graphs(tmp_path: Path) -> None:
    metrics = train(tmp_path, max_epochs=20)
    assert metrics["val_accuracy"] == 1.0
    assert float(metrics["val_f1"]) == 1.0


def test_a_training_on_batches_of_graphs_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "resumed", max_epochs=1)
    assert train(tmp_path / "resumed", max_epochs=2) == train(tmp_path / "whole", max_epochs=2)
