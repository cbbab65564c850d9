"""Trains with one of the vendors' loggers, offline or on loopback; with `kill` it dies after seven of nine iterations.

python vendors_program.py NAME_OF_THE_LOGGER kill|finish [ARGUMENT]    # the second time writes kept.json
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from camshaft import Engine, Events
from camshaft.handlers import Checkpoint, Logger, OptimizerStep

PARAMETERS = {"optimizer": {"lr": 0.5}, "layers": [3, 2]}
TAGS = {"digits": "", "stage": "first"}


def clearml(argument: str) -> Logger:
    os.environ["CLEARML_CACHE_DIR"] = str(Path.cwd())
    from clearml import Task  # noqa: PLC0415

    from camshaft.contrib.loggers import ClearMLLogger  # noqa: PLC0415

    Task.set_offline(offline_mode=True)
    return ClearMLLogger("digits", "run", every=1, parameters=PARAMETERS, tags=TAGS, checkpoints="last")


def clearml_kept(logger: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {"loss": [], "files": [], "parameters": {}, "tags": []}
    for path in sorted(Path.cwd().rglob("offline-*.zip")):
        with zipfile.ZipFile(path) as archive:
            lines = archive.read("metrics.jsonl").decode().splitlines()
            task = json.loads(archive.read("task.json"))
    kept["loss"] = [
        [one["iter"], one["value"]] for line in lines for one in json.loads(line) if one["metric"] == "loss"
    ]
    kept["parameters"] = {
        name: parameter["value"] for name, parameter in task["hyperparams"].get("General", {}).items()
    }
    kept["tags"] = task["tags"]
    kept["files"] = [artifact["key"] for artifact in task["execution"]["artifacts"]]
    return kept


def comet(argument: str) -> Logger:
    from camshaft.contrib.loggers import CometLogger  # noqa: PLC0415

    return CometLogger(
        "digits",
        online=False,
        offline_directory=str(Path.cwd() / "comet"),
        every=1,
        parameters=PARAMETERS,
        tags=TAGS,
        checkpoints="last",
    )


def comet_kept(logger: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {"loss": [], "files": [], "parameters": {}, "tags": [], "ids": []}
    for path in sorted(Path("comet").glob("*.zip"), key=lambda path: path.stat().st_mtime):
        with zipfile.ZipFile(path) as archive:
            experiment = json.loads(archive.read("experiment.json"))
            kept["ids"].append(experiment["offline_id"])
            kept["tags"] += experiment["tags"]
            for line in archive.read("messages.json").decode().splitlines():
                message = json.loads(line)["payload"]
                if "metric" in message and message["metric"]["metricName"] == "loss":
                    kept["loss"].append([message["metric"]["step"], message["metric"]["metricValue"]])
                elif "param" in message or "params" in message:
                    parameter = message.get("param") or message["params"]
                    kept["parameters"][parameter["paramName"]] = parameter["paramValue"]
                elif message.get("key") == "stage":
                    kept["tags"].append(f"stage:{message['value']}")
                elif "additional_params" in message:
                    kept["files"].append(message["additional_params"].get("fileName"))
    return kept


def mlflow(argument: str) -> Logger:
    from camshaft.contrib.loggers import MLflowLogger  # noqa: PLC0415

    return MLflowLogger(
        "digits", tracking_uri=argument, every=1, parameters=PARAMETERS, tags=TAGS, checkpoints="all", name="run"
    )


def mlflow_kept(logger: Any) -> dict[str, Any]:
    from mlflow import MlflowClient  # noqa: PLC0415

    service = MlflowClient(logger.tracking_uri)
    experiment = service.get_experiment_by_name(logger.experiment)
    runs = service.search_runs([experiment.experiment_id])
    data = service.get_run(logger.run_id).data
    return {
        "runs": [run.info.run_id for run in runs],
        "status": runs[0].info.status,
        "name": runs[0].info.run_name,
        "loss": [[one.step, one.value] for one in service.get_metric_history(logger.run_id, "loss")],
        "mean": [[one.step, one.value] for one in service.get_metric_history(logger.run_id, "mean")],
        "parameters": data.params,
        "tags": {name: value for name, value in data.tags.items() if name in TAGS},
        "files": [
            file.path
            for folder in service.list_artifacts(logger.run_id, "checkpoints")
            for file in service.list_artifacts(logger.run_id, folder.path)
        ],
    }


def neptune(argument: str) -> Logger:
    from camshaft.contrib.loggers import NeptuneLogger  # noqa: PLC0415

    return NeptuneLogger(
        "digits/run",
        api_token="none",
        mode="offline",
        capture_stdout=False,
        capture_stderr=False,
        capture_hardware_metrics=False,
        source_files=[],
        every=1,
        parameters=PARAMETERS,
        tags=TAGS,
        checkpoints="last",
    )


def neptune_kept(logger: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {"loss": [], "files": [], "parameters": {}, "tags": [], "custom_ids": []}
    logs = sorted(Path(".neptune").rglob("data-1.log"), key=lambda path: path.stat().st_mtime)
    for log in logs:
        decoder, text = json.JSONDecoder(), log.read_text().strip()
        while text:
            entry, end = decoder.raw_decode(text)
            text = text[end:].lstrip()
            operation = entry["obj"]
            path, kind = "/".join(operation.get("path", [])), operation["type"]
            if kind == "LogFloats" and path == "loss":
                kept["loss"] += [[int(value["step"]), value["value"]] for value in operation["values"]]
            elif path.startswith("parameters/"):
                kept["parameters"][path.removeprefix("parameters/")] = operation["value"]
            elif kind == "AddStrings" and path == "sys/tags":
                kept["tags"] += operation["values"]
            elif kind.startswith("Upload"):
                kept["files"].append(path)
    return kept


def visdom(argument: str) -> Logger:
    from camshaft.contrib.loggers import VisdomLogger  # noqa: PLC0415

    return VisdomLogger(offline=True, log_to_filename="visdom.log", every=1, parameters=PARAMETERS, tags=TAGS)


def visdom_kept(logger: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {"loss": [], "texts": [], "runs": []}
    for line in Path("visdom.log").read_text().splitlines():
        message = json.loads(line)[1]
        if message["eid"] not in kept["runs"]:
            kept["runs"].append(message["eid"])
        for curve in message["data"]:
            if curve.get("name") == "loss":
                kept["loss"] += [[int(x), y] for x, y in zip(curve["x"], curve["y"], strict=True)]
            elif curve.get("type") == "text":
                kept["texts"].append(curve["content"])
    return kept


def wandb(argument: str) -> Logger:
    import wandb as client  # noqa: PLC0415

    from camshaft.contrib.loggers import WandBLogger  # noqa: PLC0415

    return WandBLogger(
        "digits",
        mode="offline",
        dir=str(Path.cwd()),
        settings=client.Settings(console="off", silent=True, x_disable_meta=True, x_disable_stats=True),
        every=1,
        parameters=PARAMETERS,
        tags=TAGS,
        checkpoints="last",
    )


def wandb_kept(logger: Any) -> dict[str, Any]:
    import wandb as client  # noqa: PLC0415

    client.teardown()  # its process writes the file, and has it whole when it ends
    kept: dict[str, Any] = {"loss": [], "files": [], "parameters": {}, "tags": [], "runs": []}
    for path in sorted(Path("wandb").rglob("*.wandb"), key=lambda path: path.stat().st_mtime):
        for record in _records(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if "loss" in values:
                    kept["loss"].append([json.loads(values["iteration"]), json.loads(values["loss"])])
            elif kind == "run":
                kept["runs"] += [record.run.run_id] if record.run.run_id not in kept["runs"] else []
                kept["tags"] = list(record.run.tags)
                for item in record.run.config.update:
                    kept["parameters"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            elif kind == "config":
                for item in record.config.update:
                    kept["parameters"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            elif kind == "artifact":
                kept["files"].append(f"{record.artifact.name}: {list(record.artifact.aliases)}")
    return kept


def _records(content: bytes) -> list[Any]:
    """What a file of wandb holds: records in blocks of 32 KiB, each part with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415

    records, position, record = [], 7, b""
    while position < len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            records.append(Record.FromString(record))
            record = b""
    return records


def main(name: str, how: str, argument: str = "") -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def step(engine: Any, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch) - 1).square().mean()

    logger: Any = globals()[name](argument)
    trainer = Engine(step)
    trainer.attach(logger, OptimizerStep(optimizer), Checkpoint("run", model=model, optimizer=optimizer, keep_last=2))

    @trainer.on(Events.EPOCH_COMPLETED)
    def measure(engine: Any) -> None:
        engine.state.metrics["mean"] = engine.state.epoch / 8

    if how == "kill":

        @trainer.on(Events.ITERATION_STARTED(once=8))
        def die() -> None:
            logger.state_dict()  # as a checkpoint would, but one that is not written
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.run(list(torch.linspace(0.25, 1, 3).reshape(3, 1, 1)), max_epochs=3)
    kept = globals()[f"{name}_kept"](logger)
    Path("kept.json").write_text(json.dumps({**kept, "run_id": logger.run_id}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
