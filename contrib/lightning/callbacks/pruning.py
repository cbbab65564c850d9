"""Prunes weights during training, by torch.nn.utils.prune.

Called at setup, at on_train_epoch_end or on_validation_epoch_end, and at on_train_end and on_save_checkpoint, which
make permanent what was pruned.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["ModelPruning"]

log = logging.getLogger(__name__)

Parameters: TypeAlias = Sequence[tuple[nn.Module, str]]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ln_structured": prune.ln_structured,
    "l1_unstructured": prune.l1_unstructured,
    "random_structured": prune.random_structured,
    "random_unstructured": prune.random_unstructured,
}
_METHODS = {
    "ln_structured": prune.LnStructured,
    "l1_unstructured": prune.L1Unstructured,
    "random_structured": prune.RandomStructured,
    "random_unstructured": prune.RandomUnstructured,
}


class ModelPruning(Callback):
    """Sets a part of the weights to zero at the end of epochs, and keeps them there.

    Args:
        pruning_fn: "l1_unstructured", "random_unstructured", "ln_structured", "random_structured", or a subclass of
            ``torch.nn.utils.prune.BasePruningMethod``.
        parameters_to_prune: modules with the names of their parameters; all of the model by default.
        parameter_names: the names of the parameters that are pruned by default: "weight", "bias" or both.
        use_global_unstructured: choose among all parameters together, rather than in each.
        amount: a fraction, or a number of weights; or a function of the epoch that gives one.
        apply_pruning: whether to prune; or a function of the epoch that says so.
        make_pruning_permanent: leave out the masks in checkpoints and when training has ended.
        use_lottery_ticket_hypothesis: set what is left to its first values after each pruning (Frankle and Carbin,
            ICLR 2019); or a function of the epoch that says so.
        resample_parameters: set it to new random values instead.
        pruning_dim: along which dimension structured pruning prunes.
        pruning_norm: the norm of "ln_structured".
        verbose: 1 tells how much is zero, 2 of each parameter.
        prune_on_train_epoch_end: prune after the epoch; if not, after validation.

    Raises:
        MisconfigurationException: an argument of another kind, or missing for the ``pruning_fn``; when ``fit`` starts,
            if a parameter is not one of the model's.

    Example:
        >>> pruning = ModelPruning("l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False)
        >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> pruning.setup(None, model, "fit")
        >>> pruning.apply_pruning(0.5)
        >>> int((model[0].weight == 0).sum())
        2
    """

    PARAMETER_NAMES = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: Callable[..., Any] | str,
        parameters_to_prune: Parameters = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        self._parameters_to_prune = parameters_to_prune
        self._parameter_names = parameter_names or self.PARAMETER_NAMES
        self._use_global_unstructured = use_global_unstructured
        self.amount = amount
        self._apply_pruning = apply_pruning
        self._make_pruning_permanent = make_pruning_permanent
        self._use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self._resample_parameters = resample_parameters
        self._prune_on_train_epoch_end = prune_on_train_epoch_end
        self._verbose = verbose
        self._global_kwargs: dict[str, Any] = {}
        self._original_modules: dict[nn.Module, nn.Module] = {}

        unknown = sorted(set(self._parameter_names) - set(self.PARAMETER_NAMES))
        if unknown:
            raise MisconfigurationException(f"parameter_names are 'weight' and 'bias', not {unknown}.")
        if not isinstance(amount, (int, float)) and not callable(amount):
            raise MisconfigurationException(f"amount is a number or a function of the epoch, not {amount!r}.")
        if verbose not in (0, 1, 2):
            raise MisconfigurationException(f"verbose is 0, 1 or 2, not {verbose!r}.")
        if isinstance(pruning_fn, str):
            self._pruning_method_name = pruning_fn.lower()
            self.pruning_fn = self._create_pruning_fn(self._pruning_method_name, pruning_dim, pruning_norm)
        elif inspect.isclass(pruning_fn) and issubclass(pruning_fn, prune.BasePruningMethod):
            if not use_global_unstructured:
                raise MisconfigurationException(
                    f"{pruning_fn.__name__} is a method of pruning, which needs use_global_unstructured=True."
                )
            self._pruning_method_name = pruning_fn.__name__
            self.pruning_fn = pruning_fn
        else:
            raise MisconfigurationException(
                f"pruning_fn is one of {', '.join(map(repr, _FUNCTIONS))} or a class derived from "
                f"torch.nn.utils.prune.BasePruningMethod (the class, not an object), not {pruning_fn!r}."
            )
        if use_global_unstructured and getattr(self.pruning_fn, "PRUNING_TYPE", None) != "unstructured":
            raise MisconfigurationException(
                f"{self._pruning_method_name} prunes structures, which cannot be chosen among all parameters together: "
                "pass use_global_unstructured=False."
            )

    def _create_pruning_fn(self, name: str, dim: int | None, norm: int | None) -> Callable[..., Any]:
        if name not in _FUNCTIONS:
            raise MisconfigurationException(f"pruning_fn is one of {', '.join(map(repr, _FUNCTIONS))}, not {name!r}.")
        arguments: dict[str, Any] = {}
        if name.endswith("_structured") and not name.endswith("unstructured"):
            if dim is None:
                raise MisconfigurationException(f"{name!r} needs the dimension along which it prunes: pruning_dim=0.")
            arguments["dim"] = dim
        if name == "ln_structured":
            if norm is None:
                raise MisconfigurationException("'ln_structured' needs the norm by which it prunes: pruning_norm=1.")
            arguments["n"] = norm
        if self._use_global_unstructured:
            self._global_kwargs = arguments
            return _METHODS[name]
        return partial(_FUNCTIONS[name], **arguments)

    # ------------------------------------------------------------------------------------------------ during a run

    def filter_parameters_to_prune(self, parameters_to_prune: Parameters = ()) -> Parameters:
        """Override it to leave out parameters."""
        return parameters_to_prune

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._parameters_to_prune = self.filter_parameters_to_prune(
            self.sanitize_parameters_to_prune(pl_module, self._parameters_to_prune, self._parameter_names)
        )
        if self._use_lottery_ticket_hypothesis:
            self._original_modules = {module: copy.deepcopy(module) for module, _ in self._parameters_to_prune}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._prune_on_train_epoch_end:
            self._run_pruning(trainer.current_epoch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and not self._prune_on_train_epoch_end:
            with torch.inference_mode(False):  # masks that training can use
                self._run_pruning(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._make_pruning_permanent:
            self.make_pruning_permanent(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._make_pruning_permanent:  # in the checkpoint; the model keeps its masks, so that training can go on
            checkpoint["state_dict"] = self._make_pruning_permanent_on_state_dict(pl_module)

    def _run_pruning(self, current_epoch: int) -> None:
        amount = self.amount(current_epoch) if callable(self.amount) else self.amount
        if not _at(self._apply_pruning, current_epoch) or not amount:
            return
        self.apply_pruning(amount)
        if _at(self._use_lottery_ticket_hypothesis, current_epoch):
            self.apply_lottery_ticket_hypothesis()

    # ------------------------------------------------------------------------------------------------ pruning

    def apply_pruning(self, amount: int | float) -> None:
        """Prune so much of what is left."""
        zeros_before = self._zeros() if self._verbose else []
        if self._use_global_unstructured:
            taken = inspect.signature(self.pruning_fn).parameters
            arguments = {"amount": amount, **self._global_kwargs}
            prune.global_unstructured(
                self._parameters_to_prune,
                pruning_method=self.pruning_fn,
                **{name: value for name, value in arguments.items() if name in taken},
            )
        else:
            for module, name in self._parameters_to_prune:
                self.pruning_fn(module, name=name, amount=amount)
        if self._verbose:
            self._log_sparsity_stats(zeros_before, amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Set what is left to its first values, or to new random ones."""
        for module, original in self._original_modules.items():
            source = original
            if self._resample_parameters and callable(getattr(original, "reset_parameters", None)):
                source = copy.deepcopy(original)
                source.reset_parameters()  # type: ignore[operator]
            for pruned, name in self._parameters_to_prune:
                if pruned is module:
                    self._copy_param(module, source, name)

    @staticmethod
    def _copy_param(new: nn.Module, old: nn.Module, name: str) -> None:
        target, source = getattr(new, name + "_orig", getattr(new, name)), getattr(old, name)
        if isinstance(target, Tensor) and isinstance(source, Tensor):
            target.data = source.data.to(target.device, copy=True)

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Set the parameters to what the masks leave of them, and take the masks away."""
        for part in module.modules():
            for key, hook in list(part._forward_pre_hooks.items()):
                if isinstance(hook, prune.BasePruningMethod):
                    hook.remove(part)
                    del part._forward_pre_hooks[key]

    @staticmethod
    def _make_pruning_permanent_on_state_dict(pl_module: nn.Module) -> dict[str, Any]:
        state = pl_module.state_dict()
        for name in [name.removesuffix("_mask") for name in state if name.endswith("_mask")]:
            if name + "_orig" in state:
                original, mask = state.pop(name + "_orig"), state.pop(name + "_mask")
                state[name] = original * mask.to(original.dtype)
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}

    @staticmethod
    def sanitize_parameters_to_prune(
        pl_module: nn.Module, parameters_to_prune: Parameters = (), parameter_names: Sequence[str] = ()
    ) -> Parameters:
        """The parameters to prune: those given, if they are the model's, else all of its that have one of the names.

        Raises:
            MisconfigurationException: there is no such parameter in the model, or no list of pairs was given.
        """
        names = parameter_names or ModelPruning.PARAMETER_NAMES
        modules = list(pl_module.modules())
        if not parameters_to_prune:
            return [
                (module, name)
                for name in names
                for module in modules
                if module is not pl_module and isinstance(module._parameters.get(name), Tensor)
            ]
        pairs = isinstance(parameters_to_prune, (list, tuple)) and all(
            len(pair) == 2 and isinstance(pair[0], nn.Module) and isinstance(pair[1], str)
            for pair in parameters_to_prune
        )
        if not pairs:
            raise MisconfigurationException(
                "parameters_to_prune is a list of pairs of a module and the name of its parameter, such as "
                f"[(model.layer, 'weight')], not {parameters_to_prune!r}."
            )
        for module, name in parameters_to_prune:
            if not any(module is part for part in modules) or not hasattr(module, name):
                raise MisconfigurationException(f"The model has no {name!r} of {module!r} that could be pruned.")
        return parameters_to_prune

    # ------------------------------------------------------------------------------------------------ telling

    def _zeros(self) -> list[tuple[int, int]]:
        """How many weights of each parameter are pruned, and how many it has."""
        masks = [getattr(module, name + "_mask", None) for module, name in self._parameters_to_prune]
        return [(0, 1) if mask is None else (int((mask == 0).sum()), mask.numel()) for mask in masks]

    @rank_zero_only
    def _log_sparsity_stats(self, zeros_before: list[tuple[int, int]], amount: int | float) -> None:
        zeros = self._zeros()
        total, pruned, before = (
            sum(of_all for _, of_all in zeros),
            sum(count for count, _ in zeros),
            sum(count for count, _ in zeros_before),
        )
        log.info("%s pruned %d -> %d of %d weights.", self._pruning_method_name, before, pruned, total)
        if self._verbose == 2:
            parameters = zip(self._parameters_to_prune, zeros_before, zeros, strict=True)
            for (module, name), (zeros_then, _), (zeros_now, number) in parameters:
                log.info("%r.%s, amount %s: %d -> %d of %d", module, name, amount, zeros_then, zeros_now, number)


def _at(answer: bool | Callable[[int], bool], epoch: int) -> bool:
    return answer(epoch) if callable(answer) else answer
