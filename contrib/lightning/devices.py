"""Which devices a Trainer computes on, from its flags."""

from __future__ import annotations

import os
from typing import Any

import torch

__all__ = ["device_ids", "gpu_ids", "kind_of", "number_of_devices", "root_device"]

_KINDS = {"gpu": "cuda", "cuda": "cuda", "mps": "mps", "cpu": "cpu", "tpu": "xla", "xla": "xla"}


def kind_of(accelerator: Any) -> str:
    """The kind of device that ``accelerator=`` means: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xla"``.

    Raises:
        ValueError: it is unknown, or there is no such device here.

    Example:
        >>> kind_of("cpu")
        'cpu'
    """
    if accelerator in ("auto", None):
        return _kind_of_gpu() or "cpu"
    if accelerator not in _KINDS:
        hint = (
            " A way to spread a model goes to strategy=." if str(accelerator).startswith(("dp", "ddp", "fsdp")) else ""
        )
        raise ValueError(
            f"Trainer(accelerator={accelerator!r}): it is 'auto', 'cpu', 'gpu', 'cuda', 'mps' or 'tpu'.{hint}"
        )
    kind = _kind_of_gpu() or "cuda" if accelerator == "gpu" else _KINDS[accelerator]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"Trainer(accelerator={accelerator!r}): there is no GPU here. Use accelerator='cpu' or 'auto'."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"Trainer(accelerator={accelerator!r}): there is no MPS device here. Use 'cpu', or 'auto'.")
    if kind == "xla":
        from camshaft.handlers.device import Device  # noqa: PLC0415 - which alone knows torch_xla

        try:
            Device("xla")
        except ValueError as error:
            raise ValueError(f"Trainer(accelerator={accelerator!r}): {error}") from error
    return kind


def _kind_of_gpu() -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def device_ids(devices: Any, kind: str, *, flag: str = "devices") -> list[int]:
    """The devices that a flag asks for, one for each process of this machine.

    Args:
        devices: a number of devices (an int, or text with one), a list of their numbers (or text such as ``"0,1"``),
            -1 for all, or ``"auto"``.
        kind: of :func:`kind_of`.
        flag: its name, for the message.

    Raises:
        ValueError: it makes no sense, or there are not that many.

    Example:
        >>> device_ids("2", "cpu"), device_ids("auto", "cpu")
        ([0, 1], [0])
    """
    available = _available(kind)
    if devices in ("auto", None):
        return list(range(1 if available is None else available))
    wanted = _number_or_numbers(devices, flag)
    if wanted in (-1, [-1]):
        if available is None:
            raise ValueError(f"Trainer({flag}={devices!r}) means all devices, but a CPU is not counted: give a number.")
        return list(range(available))
    ids = list(range(wanted)) if isinstance(wanted, int) else wanted
    if not ids or any(number < 0 for number in ids) or len(set(ids)) != len(ids):
        raise ValueError(f"Trainer({flag}={devices!r}): give at least one device, and each of them once.")
    if available is not None and max(ids) >= available:
        there = ", ".join(map(str, range(available)))
        raise ValueError(f"Trainer({flag}={devices!r}): there are only {available} {kind} device(s) here: {there}.")
    if kind == "xla" and len(ids) > 1:
        raise ValueError(
            f"Trainer({flag}={devices!r}): one process uses one TPU core; several are not supported, so give 1."
        )
    return ids


def _available(kind: str) -> int | None:
    """How many devices there are, where they can be counted."""
    if kind == "cuda":
        return int(torch.cuda.device_count())
    return 1 if kind == "mps" else None


def gpu_ids(gpus: Any) -> list[int]:
    """The GPUs that ``gpus=`` asks for, the flag of releases up to 1.9; none on a machine without is an error.

    Args:
        gpus: how many (an int, or text with one), which (a list, or text such as ``"0,1"`` and ``"1,"``), -1 for all;
            None, 0, ``"0"`` and nothing for the CPU.

    Raises:
        ValueError: it makes no sense, or there are not that many.

    Example:
        >>> gpu_ids(None), gpu_ids("0"), gpu_ids([])
        ([], [], [])
    """
    if gpus in (None, "None", 0, [], ()) or (isinstance(gpus, str) and gpus.strip() in ("", "0")):
        return []
    wanted = _number_or_numbers(gpus, "gpus")
    kind = _kind_of_gpu()
    if kind is None:
        number = number_of_devices(wanted)
        asked = "all GPUs" if wanted in (-1, [-1]) else "1 GPU" if number == 1 else f"{number} GPUs"
        raise ValueError(
            f"Trainer(gpus={gpus!r}) asks for {asked}, but there is none here. Leave gpus out, or give 0, for the CPU."
        )
    return device_ids(wanted, kind, flag="gpus")


def number_of_devices(devices: Any) -> int:
    """How many devices a flag asks for, whether they are there or not; ``"auto"`` counts as one.

    Example:
        >>> number_of_devices("0,1"), number_of_devices(4), number_of_devices("auto")
        (2, 4, 1)
    """
    if devices in ("auto", None):
        return 1
    wanted = _number_or_numbers(devices, "devices")
    if wanted in (-1, [-1]):
        return max(1, torch.cuda.device_count())
    return wanted if isinstance(wanted, int) else len(wanted)


def _number_or_numbers(devices: Any, flag: str) -> int | list[int]:
    """What a flag says: how many devices (an int), or which (a list)."""
    wanted = devices
    try:
        if isinstance(devices, str):
            parts = [part for part in devices.strip().strip("[]").split(",") if part.strip()]
            wanted = [int(part) for part in parts] if "," in devices or "[" in devices else int(*parts)
        elif isinstance(devices, (list, tuple)):
            wanted = [int(one) for one in devices]
    except (TypeError, ValueError):
        wanted = None
    if isinstance(wanted, bool) or not isinstance(wanted, (int, list)):
        raise ValueError(f"Trainer({flag}={devices!r}): give a number of devices, or their numbers, such as '0,1'.")
    return wanted


def root_device(kind: str, ids: list[int]) -> torch.device:
    """The device of this process.

    Example:
        >>> root_device("cpu", [0, 1])
        device(type='cpu')
    """
    if kind == "cpu":
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0")
    return torch.device(kind, ids[local_rank % len(ids)])
