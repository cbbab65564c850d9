"""Trains a part of a module first, and more of it later.

Called at setup, which freezes, and at on_train_epoch_start, which unfreezes; at on_fit_start it gives the optimizers of
a resumed run the parameter groups that they had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["BackboneFinetuning", "BaseFinetuning", "multiplicative"]

log = logging.getLogger(__name__)

Modules: TypeAlias = "nn.Module | Iterable[nn.Module | Iterable[Any]]"


def multiplicative(epoch: int) -> float:
    """The factor of a backbone's learning rate in each epoch: it doubles."""
    return 2.0


class BaseFinetuning(Callback):
    """The base of callbacks that freeze parts of a module and unfreeze them later.

    A subclass overrides ``freeze_before_training``, called before ``configure_optimizers``, and ``finetune_function``,
    called for each optimizer when an epoch begins. ``configure_optimizers`` gives the optimizer only what requires
    gradients; what is unfrozen later becomes a new parameter group.

    Example:
        >>> class FreezeEncoder(BaseFinetuning):
        ...     def freeze_before_training(self, pl_module):
        ...         self.freeze(pl_module.encoder)
        ...
        ...     def finetune_function(self, pl_module, epoch, optimizer):
        ...         if epoch == 10:
        ...             self.unfreeze_and_add_param_group(pl_module.encoder, optimizer)
        >>> model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        >>> BaseFinetuning.freeze(model["encoder"])
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['head.weight', 'head.bias']
    """

    def __init__(self) -> None:
        # The groups of each optimizer, with the names of parameters in the place of these.
        self._internal_optimizer_metadata: dict[int, list[dict[str, Any]]] = {}
        self._restarting = False

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what is not trained at first."""
        raise NotImplementedError(f"{type(self).__name__} has no freeze_before_training.")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze what is trained from this epoch on."""
        raise NotImplementedError(f"{type(self).__name__} has no finetune_function.")

    # ------------------------------------------------------------------------------------------------ during a run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._restarting:
            return
        self._restarting = False
        parameters = dict(pl_module.named_parameters())
        for index, groups in self._internal_optimizer_metadata.items():
            groups_now = self._apply_mapping_to_param_groups(groups, parameters)
            for group in groups_now[len(trainer.optimizers[index].param_groups) :]:
                for parameter in group["params"]:
                    parameter.requires_grad = True  # it was unfrozen before the checkpoint, and frozen again by setup
            trainer.optimizers[index].param_groups = groups_now

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for index, optimizer in enumerate(trainer.optimizers):
            groups_before = len(optimizer.param_groups)
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            self._store(pl_module, index, groups_before, optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        return {"internal_optimizer_metadata": self._internal_optimizer_metadata}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restarting = True
        self._internal_optimizer_metadata = state_dict["internal_optimizer_metadata"]

    def _store(
        self,
        pl_module: LightningModule,
        opt_idx: int,
        num_param_groups: int,
        current_param_groups: list[dict[str, Any]],
    ) -> None:
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        known = self._internal_optimizer_metadata.get(opt_idx)
        if known is None:
            self._internal_optimizer_metadata[opt_idx] = self._apply_mapping_to_param_groups(
                current_param_groups, names
            )
        else:
            known.extend(self._apply_mapping_to_param_groups(current_param_groups[num_param_groups:], names))

    @staticmethod
    def _apply_mapping_to_param_groups(
        param_groups: list[dict[str, Any]], mapping: Mapping[Any, Any]
    ) -> list[dict[str, Any]]:
        return [{**group, "params": [mapping[parameter] for parameter in group["params"]]} for group in param_groups]

    # ------------------------------------------------------------------------------------------------ freezing

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """The modules within one, or within several, that hold parameters themselves or have no parts.

        Example:
            >>> BaseFinetuning.flatten_modules([nn.Sequential(nn.Linear(2, 1), nn.ReLU())])
            [Linear(in_features=2, out_features=1, bias=True), ReLU()]
        """
        if isinstance(modules, nn.ModuleDict):
            modules = modules.values()
        if isinstance(modules, Iterable):
            found = [part for module in modules for part in BaseFinetuning.flatten_modules(module)]
        else:
            found = list(modules.modules())
        return [module for module in found if not list(module.children()) or module._parameters]

    @staticmethod
    def filter_params(modules: Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[nn.Parameter]:
        """The parameters that require gradients, or those that do not.

        Args:
            modules: one or several.
            train_bn: with those of batch normalisation.
            requires_grad: which of the two.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(module, _BatchNorm):
                for parameter in module.parameters(recurse=False):
                    if parameter.requires_grad == requires_grad:
                        yield parameter

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Unfreeze all parameters, and let batch normalisation follow the data again."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm):
                module.track_running_stats = True
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = True

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters that a module holds itself; batch normalisation stops following the data."""
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze all parameters.

        Args:
            modules: one or several.
            train_bn: except those of batch normalisation.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if train_bn and isinstance(module, _BatchNorm):
                BaseFinetuning.make_trainable(module)
            else:
                BaseFinetuning.freeze_module(module)

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that an optimizer does not have yet; a warning tells of the others."""
        has = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        params = list(params)
        new = [parameter for parameter in params if id(parameter) not in has]
        if len(new) < len(params):
            rank_zero_warn(
                f"The optimizer has {len(params) - len(new)} of the {len(params)} parameters already that are unfrozen "
                "now; these stay in their group. Give it only what requires gradients in configure_optimizers: "
                f"{type(optimizer).__name__}(filter(lambda p: p.requires_grad, self.parameters()))."
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreeze modules and give their parameters to an optimizer, as a group of their own.

        Args:
            modules: one or several.
            optimizer: that trains them from now on.
            lr: the learning rate of the group; by default that of the first group divided by ``initial_denom_lr``.
            initial_denom_lr: see ``lr``.
            train_bn: with batch normalisation.
        """
        BaseFinetuning.make_trainable(modules)
        if lr is None:
            lr = optimizer.param_groups[0]["lr"] / initial_denom_lr
        params = BaseFinetuning.filter_params(modules, train_bn=train_bn, requires_grad=True)
        new = BaseFinetuning.filter_on_optimizer(optimizer, params)
        if new:
            optimizer.add_param_group({"params": new, "lr": float(lr)})


class BackboneFinetuning(BaseFinetuning):
    """Trains a module without its ``backbone`` first; then with it, at a learning rate that rises to that of the rest.

    Args:
        unfreeze_backbone_at_epoch: the epoch from which on the backbone is trained.
        lambda_func: the factor of the backbone's learning rate from one epoch to the next.
        backbone_initial_ratio_lr: the backbone's first learning rate, as a fraction of that of the rest.
        backbone_initial_lr: the same as a number.
        should_align: whether the learning rate stays that of the rest once it has reached it.
        initial_denom_lr: see ``unfreeze_and_add_param_group``.
        train_bn: whether the backbone's batch normalisation is trained.
        verbose: tell of the learning rates.
        rounding: to how many digits.

    Raises:
        MisconfigurationException: when ``fit`` starts, if the module has no ``backbone`` that is a module.

    Example:
        >>> finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=10, lambda_func=lambda epoch: 1.5)
        >>> finetuning.state_key
        'BackboneFinetuning'
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise MisconfigurationException(
                f"BackboneFinetuning trains the `backbone` of a module later than the rest, but "
                f"{type(pl_module).__name__} has none: assign the part to self.backbone."
            )
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        rate: float = optimizer.param_groups[0]["lr"]
        if epoch == self.unfreeze_backbone_at_epoch:
            given = self.backbone_initial_lr
            backbone_rate = rate * self.backbone_initial_ratio_lr if given is None else given
            self.unfreeze_and_add_param_group(
                pl_module.backbone, optimizer, backbone_rate, self.initial_denom_lr, self.train_bn
            )
        else:
            backbone_rate = self.lambda_func(epoch + 1) * (self.previous_backbone_lr or 0.0)
            if self.should_align and backbone_rate > rate:
                backbone_rate = rate
            optimizer.param_groups[-1]["lr"] = backbone_rate
        self.previous_backbone_lr = backbone_rate
        if self.verbose:
            log.info("lr: %s, of the backbone: %s", round(rate, self.rounding), round(backbone_rate, self.rounding))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)
