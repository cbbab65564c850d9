"""Tries, before training begins, whether a module answers a request.

A callback: it tries in ``on_train_start``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.serve.servable_module import ServableModule
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_info, rank_zero_only

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["ServableModuleValidator"]


@dataclass(frozen=True)
class _Response:
    """What a client would get."""

    status_code: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class ServableModuleValidator(Callback):
    """Sends a module the request of its ``configure_payload``, and compares the answer with ``configure_response``.

    Request and answer go through JSON as they would on the net, but no server is started.

    Args:
        optimization: not supported.
        server: ``"fastapi"`` only, which is not needed.
        host: accepted; nothing listens there.
        port: accepted, as ``host``.
        timeout: accepted; nothing is waited for.
        exit_on_failure: whether it is an error that the module does not answer.

    Attributes:
        resp: the answer, with ``status_code`` and ``json()``; None before.

    Raises:
        NotImplementedError: another server, or an optimization.
        TypeError: when training starts: the module is no ``ServableModule``.
        MisconfigurationException: when training starts: it does not answer, or not as it should.
    """

    def __init__(
        self,
        optimization: str | None = None,
        server: str = "fastapi",
        host: str = "127.0.0.1",
        port: int = 8080,
        timeout: int = 20,
        exit_on_failure: bool = True,
    ) -> None:
        if optimization is not None or server != "fastapi":
            raise NotImplementedError(
                f"ServableModuleValidator(optimization={optimization!r}, server={server!r}): only optimization=None "
                "and server='fastapi' are supported."
            )
        self.optimization = optimization
        self.server = server
        self.host = host
        self.port = port
        self.timeout = timeout
        self.exit_on_failure = exit_on_failure
        self.resp: _Response | None = None

    @property
    def successful(self) -> bool | None:
        """Whether the module answered; None before."""
        return None if self.resp is None else self.resp.status_code == 200

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not isinstance(pl_module, ServableModule):
            raise TypeError(f"{type(pl_module).__name__} cannot be served: let it inherit from ServableModule, too.")
        payload = pl_module.configure_payload()
        if "body" not in payload:
            raise MisconfigurationException(f"configure_payload() returns {{'body': ...}}, but got {payload!r}.")
        was_training = pl_module.training
        try:
            self.resp = _Response(200, json.dumps(_answer(pl_module.eval(), json.loads(json.dumps(payload))["body"])))
        except Exception as error:
            self.resp = _Response(500, json.dumps({"detail": repr(error)}))
            if self.exit_on_failure:
                raise MisconfigurationException(
                    f"{type(pl_module).__name__} does not answer its request: {error!r}."
                ) from error
            return
        finally:
            pl_module.train(was_training)
        expected = pl_module.configure_response()
        if expected is not None and self.resp.json() != expected:
            raise MisconfigurationException(
                f"{type(pl_module).__name__} answers {self.resp.json()!r}, but configure_response() says {expected!r}."
            )
        rank_zero_info(f"{type(pl_module).__name__} answers its request: {self.resp.json()}")

    def state_dict(self) -> dict[str, Any]:
        return {"successful": self.successful, "optimization": self.optimization, "server": self.server}


def _answer(module: ServableModule, body: dict[str, Any]) -> dict[str, Any]:
    readers, writers = module.configure_serialization()
    inputs = {name: readers[name](value) if name in readers else value for name, value in body.items()}
    with torch.no_grad():
        outputs = module.serve_step(**inputs)
    if not isinstance(outputs, dict):
        raise TypeError(f"serve_step() returns a dictionary, but got {outputs!r}")
    return {name: writers[name](value) if name in writers else value for name, value in outputs.items()}
