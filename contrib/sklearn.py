"""Estimators for scikit-learn whose `fit` runs an engine with handlers, in pipelines and searches, too.

``pip install scikit-learn``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from ignite.metrics import Accuracy, Average, Loss
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
from torch import nn

from camshaft.engine.engine import Engine
from camshaft.engine.events import Events
from camshaft.engine.generators import generators_kept
from camshaft.engine.phases import Phase, subscribe
from camshaft.engine.seeding import seed_everything
from camshaft.engine.tensor_loader import TensorLoader
from camshaft.handlers.amp import AMP
from camshaft.handlers.checkpoint_contents import stateful_handlers
from camshaft.handlers.device import Device
from camshaft.handlers.evaluate import Evaluate, evaluation_mode
from camshaft.handlers.handler import Handler
from camshaft.handlers.metrics import Metrics
from camshaft.handlers.monitor import metrics_of
from camshaft.handlers.optimizer_step import OptimizerStep
from camshaft.handlers.progress_bar import ProgressBar

__all__ = ["EngineClassifier", "EngineRegressor"]

_MADE = ("module__", "criterion__", "optimizer__")  # what fit() makes, each with arguments of its own
_OF_INPUTS: dict[str, Any] = {"dtype": (np.float64, np.float32), "allow_nd": True}  # how scikit-learn validates them


class _EngineEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators have: parameters, the engine that is made of them, and its runs.

    A subclass adds ``_default_criterion``, ``_shuffle_split``, ``_targets``, ``_outputs_wanted``, ``_scores`` and
    ``_fitting``.
    """

    def __init__(
        self,
        module: Callable[..., nn.Module] = nn.Linear,
        *,
        criterion: Callable[..., Any] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        lr: float = 0.01,
        max_epochs: int = 10,
        batch_size: int = 128,
        handlers: Sequence[Any] = (),
        validation: Any = None,
        device: str | torch.device = "auto",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        random_state: Any = None,
        warm_start: bool = False,
        verbose: bool = False,
        **module__arguments: Any,
    ) -> None:
        self.module = module
        self.criterion = criterion
        self.optimizer = optimizer
        self.lr = lr
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.handlers = handlers
        self.validation = validation
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        for name, value in module__arguments.items():
            if not name.startswith(_MADE):
                raise TypeError(f"{type(self).__name__} has no parameter {name!r}. It has {self._known()}.")
            setattr(self, name, value)

    # ------------------------------------------------------------------------------------------------ parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name, ``module__width`` and the like among them; none of them is an estimator itself."""
        further = [name for name in vars(self) if name.startswith(_MADE)]
        return {name: getattr(self, name) for name in (*self._names(), *further)}

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name, as in ``set_params(lr=0.1, module__width=64)``.

        Raises:
            ValueError: there is no parameter of that name; none was set then.
        """
        for name in params:
            if name not in self._names() and not name.startswith(_MADE):
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}. It has {self._known()}.")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    @classmethod
    def _names(cls) -> list[str]:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]

    @classmethod
    def _known(cls) -> str:
        return ", ".join((*cls._names(), *(f"{prefix}…" for prefix in _MADE)))

    def _arguments_of(self, prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in vars(self).items() if name.startswith(prefix)}

    # ------------------------------------------------------------------------------------------------ training

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803 - scikit-learn's name for it
        """Train for ``max_epochs``, anew unless ``warm_start``.

        Args:
            X: samples by features, or with more dimensions: an array, a data frame or a tensor.
            y: targets.
            sample_weight: how much each sample counts.

        Returns:
            The estimator itself.

        Raises:
            ValueError: data that scikit-learn refuses; the module's outputs do not fit the targets.
        """
        anew = not (self.warm_start and hasattr(self, "engine_"))
        return self._train(X, y, sample_weight, self.max_epochs, anew=anew)

    def _train(self, X: Any, y: Any, sample_weight: Any, epochs: int, *, anew: bool, classes: Any = None) -> Any:  # noqa: N803
        X, y = validate_data(self, _array(X), _array(y), reset=anew, multi_output=True, **_OF_INPUTS)  # noqa: N806
        targets = self._targets(y, anew, classes)
        arrays = [X, targets]
        if sample_weight is not None:
            weights = _check_sample_weight(_array(sample_weight), X, ensure_non_negative=True)
            arrays.append(weights / weights.mean())  # a weight of 2 is what the sample given twice would be
        if anew:
            self._random = check_random_state(self.random_state)
        with generators_kept():
            seed_everything(int(self._random.randint(2**31 - 1)))
            if anew:
                self._make(X.shape[1], self._outputs_wanted())
            tensors = [torch.tensor(array, dtype=None if array is targets else self._dtype) for array in arrays]
            if self.validation is not None:
                train, held_out = next(self._splitter().split(X, y))
                self._evaluate.data = TensorLoader(
                    *(tensor[held_out] for tensor in tensors[:2]), batch_size=self.batch_size
                )
                tensors = [tensor[train] for tensor in tensors]
            self.engine_.state.max_epochs = self.engine_.state.max_iters = None  # a run of its own each time
            self.engine_.run(TensorLoader(*tensors, batch_size=self.batch_size, shuffle=True), max_epochs=epochs)
        return self

    def _splitter(self) -> Any:
        if isinstance(self.validation, float) and 0 < self.validation < 1:
            return self._shuffle_split(1, test_size=self.validation)
        if not hasattr(self.validation, "split"):
            raise ValueError(
                f"validation is the share of the samples to hold out, between 0 and 1, or a splitter of scikit-learn, "
                f"not {self.validation!r}."
            )
        return self.validation

    def _make(self, features: int, outputs: int) -> None:
        """Make the module, its optimizer and the engine."""
        self._number_of_outputs = outputs
        self.module_ = self._new_module(features, outputs)
        self.optimizer_ = self.optimizer(self.module_.parameters(), lr=self.lr, **self._arguments_of("optimizer__"))
        self.history_: list[dict[str, float]] = []
        self._make_engine()

    def _new_module(self, features: int, outputs: int) -> nn.Module:
        given = self._arguments_of("module__")
        if isinstance(self.module, nn.Module):
            if given:
                raise ValueError(
                    f"{', '.join(f'module__{name}' for name in given)} would be given to what makes the module, but "
                    f"module is a {type(self.module).__name__} that is made already: pass its class."
                )
            return copy.deepcopy(self.module)
        from_data = {"in_features": features, "out_features": outputs}
        takes = inspect.signature(self.module).parameters
        return self.module(**{name: value for name, value in from_data.items() if name in takes} | given)

    def _make_engine(self) -> None:
        """Make the engine, and attach what the parameters ask for."""
        module, loss_of, history = self.module_, self._loss(), self.history_

        def training_step(engine: Engine, batch: list[torch.Tensor]) -> torch.Tensor:
            inputs, targets, *weights = batch
            return loss_of(module(inputs), targets, *weights)

        def validation_step(engine: Engine, batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            inputs, targets = batch
            return _full_precision(module(inputs)), targets

        def note(engine: Engine) -> None:
            history.append({name: float(value) for name, value in metrics_of(engine).items()})

        engine = Engine(training_step)
        engine.attach(OptimizerStep(self.optimizer_), Metrics(loss=Average()), *self._surroundings())
        if self.validation is not None:
            evaluator = Engine(validation_step)
            evaluator.attach(Metrics(loss=Loss(loss_of), **self._scores()), *self._surroundings())
            self._evaluate = Evaluate(evaluator, ())
            engine.attach(self._evaluate)
        if self.verbose:
            engine.attach(ProgressBar())
        for handler in self.handlers:
            engine.attach(copy.deepcopy(handler) if hasattr(handler, "attach") else handler(self))
        subscribe(engine, Events.EPOCH_COMPLETED, note, Phase.REPORT)
        self.engine_ = engine

    def _surroundings(self) -> list[Handler]:
        """What training, validation and prediction have in common."""
        return [Device(self.device), *([] if self.precision == "fp32" else [AMP(self.precision)])]

    def _loss(self) -> Callable[..., torch.Tensor]:
        """The criterion as a function of outputs, targets and, where samples are weighted, their weights."""
        criterion, given = self.criterion or self._default_criterion, self._arguments_of("criterion__")
        made = criterion if isinstance(criterion, type) else functools.partial(functools.partial, criterion)
        of_batch = made(**given)
        takes_reduction = "reduction" in inspect.signature(criterion).parameters
        of_each = made(**given | {"reduction": "none"}) if takes_reduction else None
        fitting, number = self._fitting, self._number_of_outputs

        def loss_of(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
            outputs = fitting(outputs, targets, number)
            if weights is None:
                loss: torch.Tensor = of_batch(outputs, targets)
                return loss
            if of_each is None:
                raise ValueError(
                    f"Samples are weighted, but {criterion!r} takes no reduction='none', so that their losses cannot "
                    "be told apart: leave sample_weight out, or take another criterion."
                )
            losses = of_each(outputs, targets)  # (batch,) or (batch, outputs)
            weighted: torch.Tensor = losses.reshape(len(weights), -1).mean(1) * weights
            return weighted.mean()

        return loss_of

    @property
    def _dtype(self) -> torch.dtype:
        """Of the module's weights."""
        floats = (part.dtype for part in self.module_.parameters() if part.is_floating_point())
        return next(floats, torch.get_default_dtype())

    # ------------------------------------------------------------------------------------------------ prediction

    def _outputs(self, X: Any) -> torch.Tensor:  # noqa: N803
        """The module's outputs for all samples, on the CPU, in the type of ``X``."""
        check_is_fitted(self)
        X = validate_data(self, _array(X), reset=False, **_OF_INPUTS)  # noqa: N806
        module, outputs = self.module_, []

        def prediction_step(engine: Engine, batch: list[torch.Tensor]) -> None:
            outputs.append(_full_precision(module(batch[0])).cpu())

        predictor = Engine(prediction_step).attach(*self._surroundings())
        samples = torch.tensor(X, dtype=self._dtype)
        own = torch.Generator()  # so that the loader leaves the global one alone
        with evaluation_mode([module]), torch.no_grad():
            predictor.run(TensorLoader(samples, batch_size=self.batch_size, generator=own))
        return torch.cat(outputs).to(torch.float64 if X.dtype == np.float64 else torch.float32)

    # ------------------------------------------------------------------------------------------------ pickling

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_evaluate", None)
        engine = state.pop("engine_", None)
        if engine is not None:  # it holds functions made in fit(), which pickle refuses
            handlers = stateful_handlers(engine)
            state["_of_handlers"] = {name: copy.deepcopy(handler.state_dict()) for name, handler in handlers.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        of_handlers = state.pop("_of_handlers", None)
        super().__setstate__(state)
        if of_handlers is not None:
            of_optimizer = copy.deepcopy(self.optimizer_.state_dict())
            self._make_engine()
            for name, handler in stateful_handlers(self.engine_).items():
                handler.load_state_dict(of_handlers[name])
            self.optimizer_.load_state_dict(of_optimizer)  # of which a new schedule has changed the learning rate


class EngineClassifier(ClassifierMixin, _EngineEstimator):  # type: ignore[misc]
    """A classifier of scikit-learn that trains a module with an engine and handlers.

    ``fit`` makes the module, its optimizer and a ``camshaft.Engine``, attaches ``OptimizerStep``, ``Device``,
    ``Metrics`` and what the parameters ask for, and runs it: ``print(estimator.engine_)`` shows all of it. Pipelines,
    searches, ``clone`` and pickle work as with any other estimator; what was trained on an accelerator is unpickled
    where there is one, too.

    Args:
        module: the class of the module, or a function that makes one, from ``module__width=64`` and the like. What is
            called ``in_features`` or ``out_features`` among its arguments is told by the data, unless it is given: so
            ``nn.Linear``, the default, is logistic regression. Or a module itself, of which each ``fit`` trains a copy.
            Its outputs are logits or log-probabilities, one for each class. It gets samples in the type of its weights.
        criterion: the class of the loss, made from ``criterion__…``, or a function; ``nn.CrossEntropyLoss`` by default.
        optimizer: its class, made from the parameters, ``lr`` and ``optimizer__…``.
        lr: the learning rate.
        max_epochs: how many epochs ``fit`` trains.
        batch_size: samples in a batch.
        handlers: what to attach to the engine: handlers, of which each ``fit`` attaches copies, and functions that are
            called with the estimator and return one, for those that need ``module_`` or ``optimizer_``, such as
            ``lambda estimator: LRScheduler(StepLR(estimator.optimizer_, 5))``.
        validation: the share of the samples to hold out, or a splitter of scikit-learn, whose first split is taken.
            ``val_loss`` and, of a classifier, ``val_accuracy`` are then there after each epoch, for ``EarlyStopping``
            and the like; weights of samples do not count there.
        device: as of ``Device``.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` as of ``AMP``.
        random_state: of all that is drawn: first weights, order of samples, what is held out, dropout. The global
            generators are left as they were.
        warm_start: whether a further ``fit`` goes on with what the one before has made.
        verbose: whether to show a ``ProgressBar``.
        module__arguments: ``module__…``, ``criterion__…`` and ``optimizer__…``.

    Attributes:
        engine_: the engine that trained.
        module_: the trained module.
        optimizer_: its optimizer.
        history_: the metrics of each epoch that it has trained, with the mean ``"loss"`` of the iterations.
        classes_: the classes.
        n_features_in_: how many features, or channels, a sample has.
        feature_names_in_: their names, where ``X`` was a data frame.

    Raises:
        TypeError: a parameter that there is not.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = EngineClassifier(lr=0.1, batch_size=16, max_epochs=5, random_state=0)
        >>> round(make_pipeline(StandardScaler(), classifier).fit(X, y).score(X, y), 1)
        1.0
        >>> classifier.engine_.handlers[0], classifier.engine_.state.iteration
        (OptimizerStep(AdamW), 50)
    """

    _default_criterion = nn.CrossEntropyLoss
    _shuffle_split = StratifiedShuffleSplit

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> EngineClassifier:  # noqa: N803
        """Train for one epoch, going on with what was trained before.

        Args:
            X: samples by features.
            y: their classes.
            classes: all that there will be; needed at the first call only.
            sample_weight: how much each sample counts beside the others of this call.

        Raises:
            ValueError: the first call says no ``classes``; data that scikit-learn refuses.
        """
        anew = not hasattr(self, "engine_")
        if anew and classes is None:
            raise ValueError("The first call of partial_fit needs all classes that there will be: classes=[…].")
        fitted: EngineClassifier = self._train(X, y, sample_weight, 1, anew=anew, classes=classes)
        return fitted

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
        """The probability of each class, in the order of ``classes_``: (samples, classes)."""
        probabilities: np.ndarray[Any, Any] = self._outputs(X).softmax(1).numpy()
        return probabilities

    def predict(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
        """The most probable class of each sample."""
        indices = self._outputs(X).argmax(1).numpy()
        classes: np.ndarray[Any, Any] = self.classes_[indices]
        return classes

    def _targets(self, y: Any, anew: bool, classes: Any) -> np.ndarray[Any, Any]:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if anew:
            self.classes_ = np.unique(y if classes is None else classes)
        indices: np.ndarray[Any, Any] = LabelEncoder().fit(self.classes_).transform(y)
        return indices

    def _outputs_wanted(self) -> int:
        return len(self.classes_)

    def _scores(self) -> dict[str, Any]:
        return {"accuracy": Accuracy()}

    @staticmethod
    def _fitting(outputs: torch.Tensor, targets: torch.Tensor, number: int) -> torch.Tensor:
        if outputs.shape != (len(targets), number):
            raise ValueError(
                f"The module's outputs for {len(targets)} samples have the shape {tuple(outputs.shape)}, but there are "
                f"{number} classes: it must give a logit for each."
            )
        return outputs


class EngineRegressor(RegressorMixin, _EngineEstimator):  # type: ignore[misc]
    """A regressor of scikit-learn that trains a module with an engine and handlers.

    It takes the parameters of :class:`EngineClassifier`; its ``criterion`` is ``nn.MSELoss`` by default, and its module
    has one output for each target, so that ``nn.Linear`` is linear regression.

    Example:
        >>> X = np.linspace(-1, 1, 64).reshape(-1, 1)
        >>> regressor = EngineRegressor(lr=0.1, batch_size=16, max_epochs=20, random_state=0).fit(X, 3 * X[:, 0] + 1)
        >>> regressor.predict([[0.0], [1.0]]).round(1)
        array([1., 4.])
    """

    _default_criterion = nn.MSELoss
    _shuffle_split = ShuffleSplit

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> EngineRegressor:  # noqa: N803
        """Train for one epoch, going on with what was trained before.

        Args:
            X: samples by features.
            y: their targets.
            sample_weight: how much each sample counts beside the others of this call.

        Raises:
            ValueError: data that scikit-learn refuses.
        """
        fitted: EngineRegressor = self._train(X, y, sample_weight, 1, anew=not hasattr(self, "engine_"))
        return fitted

    def predict(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
        """The value of each sample: (samples,), or (samples, targets) where ``y`` had two dimensions."""
        outputs = self._outputs(X)
        predictions: np.ndarray[Any, Any] = outputs.reshape(len(outputs), *self._shape_of_target).numpy()
        return predictions

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _targets(self, y: Any, anew: bool, classes: Any) -> np.ndarray[Any, Any]:
        if anew:
            self._shape_of_target = y.shape[1:]
        return np.asarray(y, dtype=np.float64)

    def _outputs_wanted(self) -> int:
        return math.prod(self._shape_of_target)

    def _scores(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def _fitting(outputs: torch.Tensor, targets: torch.Tensor, number: int) -> torch.Tensor:
        if outputs.numel() != targets.numel():
            raise ValueError(
                f"The module's outputs have the shape {tuple(outputs.shape)}, but the targets {tuple(targets.shape)}: "
                "it must give a number for each."
            )
        return outputs.reshape(targets.shape)


def _array(values: Any) -> Any:
    """Tensors as arrays; anything else is scikit-learn's to convert."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _full_precision(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.float() if outputs.dtype.itemsize < torch.float32.itemsize else outputs
