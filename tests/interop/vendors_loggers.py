"""Runs one engine with one of Ignite's loggers for vendors' services, offline, and writes down what the logger kept.

python vendors_loggers.py NAME_OF_THE_LOGGER camshaft|ignite    # writes scalars.json
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What each of them must have kept of the run below: values by step.
SCALARS = {"loss": {"1": 0.25, "2": 0.5, "3": 0.75, "4": 1.0}, "lr": {"2": 0.5, "4": 0.5}}

Scalars = dict[str, dict[str, float]]


def clearml(run: Callable[[Any], None]) -> Scalars:
    os.environ["CLEARML_CACHE_DIR"] = str(Path.cwd())
    from clearml import Task  # noqa: PLC0415
    from ignite.handlers import ClearMLLogger  # noqa: PLC0415

    Task.set_offline(offline_mode=True)
    logger = ClearMLLogger(
        project_name="interop",
        task_name="run",
        auto_connect_frameworks={"detect_repository": False},
        auto_connect_arg_parser=False,
        auto_connect_streams=False,
        auto_resource_monitoring=False,
    )
    folder = Path(logger._task.get_offline_mode_folder())
    run(logger)
    logger.close()
    kept: Scalars = {}
    for line in _unpacked(folder, "metrics.jsonl").splitlines():
        for scalar in json.loads(line):
            kept.setdefault(scalar["metric"].replace("training", "loss"), {})[str(scalar["iter"])] = scalar["value"]
    return kept


def _unpacked(folder: Path, name: str) -> str:
    import zipfile  # noqa: PLC0415

    with zipfile.ZipFile(folder.with_name(folder.name + ".zip")) as archive:
        return archive.read(name).decode()


def mlflow(run: Callable[[Any], None]) -> Scalars:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from ignite.handlers import MLflowLogger  # noqa: PLC0415
    from mlflow import MlflowClient  # noqa: PLC0415

    store = Path("mlruns").absolute().as_uri()
    logger = MLflowLogger(tracking_uri=store)
    run_id = logger.active_run.info.run_id
    run(logger)
    logger.close()
    client = MlflowClient(tracking_uri=store)
    names = {"loss": "training loss", "lr": "lr group_0"}
    return {
        key: {str(at.step): at.value for at in client.get_metric_history(run_id, name)} for key, name in names.items()
    }


def neptune(run: Callable[[Any], None]) -> Scalars:
    from ignite.handlers import NeptuneLogger  # noqa: PLC0415

    logger = NeptuneLogger(
        api_token="none",
        project="interop/run",
        mode="offline",
        capture_stdout=False,
        capture_stderr=False,
        capture_hardware_metrics=False,
        source_files=[],
    )
    run(logger)
    logger.close()
    kept: Scalars = {}
    (log,) = Path(".neptune").rglob("data-1.log")
    decoder, text = json.JSONDecoder(), log.read_text().strip()
    while text:
        entry, end = decoder.raw_decode(text)
        text = text[end:].lstrip()
        if entry["obj"]["type"] == "LogFloats":
            series = kept.setdefault({"training": "loss"}.get(entry["obj"]["path"][0], "lr"), {})
            series.update({str(int(value["step"])): value["value"] for value in entry["obj"]["values"]})
    return kept


def polyaxon(run: Callable[[Any], None]) -> Scalars:
    os.environ["POLYAXON_OFFLINE"] = "true"
    from ignite.handlers import PolyaxonLogger  # noqa: PLC0415

    logger = PolyaxonLogger(
        owner="interop",
        project="interop",
        name="run",
        is_offline=True,
        artifacts_path="artifacts",
        track_code=False,
        track_env=False,
        track_logs=False,
        collect_artifacts=False,
        collect_resources=False,
    )
    logger.set_run_event_logger()
    run(logger)
    logger.close()
    kept: Scalars = {}
    for key, name in {"loss": "training__loss", "lr": "lr__group_0"}.items():
        lines = Path("artifacts", "events", "metric", f"{name}.plx").read_text().splitlines()[1:]
        kept[key] = {step: float(value) for step, _, value in (line.split("|") for line in lines)}
    return kept


def visdom(run: Callable[[Any], None]) -> Scalars:
    from ignite.handlers import VisdomLogger  # noqa: PLC0415

    logger = VisdomLogger(offline=True, log_to_filename="visdom.log")
    run(logger)
    logger.close()
    kept: Scalars = {}
    for line in Path("visdom.log").read_text().splitlines():
        for curve in json.loads(line)[1]["data"]:
            series = kept.setdefault({"training/loss": "loss"}.get(curve["name"], "lr"), {})
            series.update({str(int(x)): y for x, y in zip(curve["x"], curve["y"], strict=True)})
    return kept


def wandb(run: Callable[[Any], None]) -> Scalars:
    import wandb as client  # noqa: PLC0415
    from ignite.handlers import WandBLogger  # noqa: PLC0415

    settings = client.Settings(console="off", silent=True, x_disable_meta=True, x_disable_stats=True)
    logger = WandBLogger(project="interop", mode="offline", dir=str(Path.cwd()), settings=settings)
    run(logger)
    logger.close()
    client.teardown()  # its process writes the file, and has it whole when it ends
    kept: Scalars = {"loss": {}, "lr": {}}
    (path,) = Path("wandb").rglob("*.wandb")
    for values in _histories(path.read_bytes()):
        for key, name in {"loss": "training/loss", "lr": "lr/group_0"}.items():
            if name in values:
                kept[key][str(values["_step"])] = values[name]
    return kept


def _histories(content: bytes) -> list[dict[str, Any]]:
    """What a file of wandb holds as history: records in blocks of 32 KiB, each part with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415

    histories, position, record = [], 7, b""
    while position < len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            parsed = Record.FromString(record)
            record = b""
            if parsed.WhichOneof("record_type") == "history":
                items = parsed.history.item
                histories.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return histories


# Ignite's logger: the module it needs, and what runs it.
LOGGERS: dict[str, tuple[str, Callable[[Callable[[Any], None]], Scalars]]] = {
    "ClearMLLogger": ("clearml", clearml),
    "MLflowLogger": ("mlflow", mlflow),
    "NeptuneLogger": ("neptune", neptune),
    "PolyaxonLogger": ("polyaxon", polyaxon),
    "VisdomLogger": ("visdom", visdom),
    "WandBLogger": ("wandb", wandb),
}


def main(name: str, column: str) -> None:
    import torch  # noqa: PLC0415
    from ignite.engine import Engine as IgniteEngine  # noqa: PLC0415

    from camshaft.engine import Engine, Events  # noqa: PLC0415

    engine = {"camshaft": Engine, "ignite": IgniteEngine}[column](lambda engine, batch: batch / 4)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)

    def run(logger: Any) -> None:
        logger.attach_output_handler(
            engine, Events.ITERATION_COMPLETED, tag="training", output_transform=lambda output: {"loss": output}
        )
        logger.attach_opt_params_handler(engine, Events.ITERATION_COMPLETED(every=2), optimizer=optimizer)
        engine.run([1, 2, 3, 4])

    Path("scalars.json").write_text(json.dumps(LOGGERS[name][1](run)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
