"""Learning rates and batch sizes that are found by trying them."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.demos.boring_classes import BoringModel, RandomDataset
from camshaft.contrib.lightning.tuner import Tuner
from camshaft.contrib.lightning.tuner.batch_size_scaling import largest
from camshaft.contrib.lightning.tuner.lr_finder import LRFinder
from camshaft.contrib.lightning.tuner.module_state import left_as_it_was
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


def trainer(**flags):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**quiet, **flags})


class Model(BoringModel):
    def __init__(self, lr=0.1, batch_size=2):
        super().__init__()
        self.save_hyperparameters()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((len(batch), self.trainer.optimizers[0].param_groups[0]["lr"]))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}]

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 64), batch_size=self.hparams.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


# The learning rate.


@pytest.fixture(scope="module")
def found():
    """A search, with what was there before and after."""
    torch.manual_seed(0)
    model, outer = Model(batch_size=8), trainer(max_epochs=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}, vars(outer).copy()
    finder = Tuner(outer).lr_find(model, min_lr=1e-4, max_lr=1.0, num_training=30)
    return finder, model, outer, before


def test_the_learning_rate_grows_exponentially_to_its_largest_value(found):
    rates = found[0].results["lr"]
    assert rates[0] == 1e-4
    assert rates[-1] == pytest.approx(1.0)
    assert len({round(later / earlier, 6) for earlier, later in pairwise(rates[1:])}) == 1


def test_the_data_begins_again_where_it_has_fewer_batches_than_steps(found):
    assert len(found[0].results["loss"]) == 30


def test_the_suggestion_is_where_the_smoothed_loss_falls_most_steeply(found):
    finder = found[0]
    losses, rates = (torch.tensor(finder.results[name][10:-1]) for name in ("loss", "lr"))
    slopes = torch.gradient(losses, spacing=[rates])[0]
    assert finder.suggestion() == pytest.approx(rates[slopes.argmin()].item())


def test_the_modules_learning_rate_is_set(found):
    finder, model, *_ = found
    assert model.hparams.lr == finder.suggestion()


def test_the_weights_are_as_they_were(found):
    _, model, _, (weights, _) = found
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_what_the_module_collected_is_as_it_was(found):
    assert found[1].seen == []


def test_the_module_belongs_to_no_trainer_afterwards(found):
    with pytest.raises(RuntimeError, match="not attached to a Trainer"):
        _ = found[1].trainer


def test_the_trainer_is_as_it_was(found):
    _, _, outer, (_, attributes) = found
    assert vars(outer) == attributes
    assert (outer.global_step, outer.state.fn, outer.lightning_module) == (0, None, None)


def test_random_numbers_are_as_they_were():
    model, state = Model(batch_size=8), torch.get_rng_state()
    Tuner(trainer()).lr_find(model, num_training=2, update_attr=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fit_after_the_search_begins_at_its_beginning(found):
    torch.manual_seed(0)
    model = Model(lr=0.1, batch_size=8)
    outer = trainer(max_epochs=1)
    Tuner(outer).lr_find(model, num_training=5, update_attr=False)
    outer.fit(model)
    assert [lr for _, lr in model.seen][:2] == [0.1, pytest.approx(0.01)]  # with its schedule
    assert outer.global_step == 8


def test_a_linear_search_grows_linearly():
    finder = Tuner(trainer()).lr_find(Model(batch_size=8), mode="linear", min_lr=0.1, max_lr=1.1, num_training=5)
    assert finder.results["lr"] == pytest.approx([0.1, 0.5, 0.7, 0.9, 1.1])


def test_accumulated_batches_make_one_point():
    finder = Tuner(trainer(accumulate_grad_batches=2)).lr_find(Model(batch_size=8), num_training=4, update_attr=False)
    assert len(finder.results["lr"]) == len(finder.results["loss"]) == 4


def test_the_search_ends_when_the_loss_explodes():
    model = Model(batch_size=8)
    finder = Tuner(trainer()).lr_find(model, min_lr=0.1, max_lr=1e6, num_training=50, update_attr=False)
    losses = finder.results["loss"]
    assert len(losses) < 50
    assert losses[-1] > 4 * min(losses)


def test_a_search_without_a_threshold_goes_on():
    finder = Tuner(trainer()).lr_find(
        Model(batch_size=8), min_lr=0.1, max_lr=1e6, num_training=50, early_stop_threshold=None, update_attr=False
    )
    assert len(finder.results["loss"]) == 50


def test_nothing_is_suggested_from_too_few_points():
    finder = Tuner(trainer()).lr_find(Model(batch_size=8), num_training=5)
    assert finder.suggestion() is None
    finder.results["loss"] = [math.nan] * 30
    finder.results["lr"] = list(range(30))
    assert finder.suggestion() is None


def test_another_attribute_can_be_set():
    class Other(Model):
        def __init__(self):
            super().__init__(batch_size=8)
            self.rate = 0.5

    model = Other()
    finder = Tuner(trainer()).lr_find(model, min_lr=1e-4, num_training=30, attr_name="rate")
    assert (model.rate, model.hparams.lr) == (finder.suggestion(), 0.1)


def test_a_module_without_a_learning_rate_is_told_so_before_the_search():
    with pytest.raises(
        AttributeError, match=r"neither BoringModel nor its hyperparameters have 'lr' or 'learning_rate'"
    ):
        Tuner(trainer()).lr_find(BoringModel())


def test_a_module_with_several_optimizers_is_refused():
    class Several(Model):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=1.0) for _ in range(2)]

    with pytest.raises(
        MisconfigurationException, match=r"one optimizer, but Several\.configure_optimizers\(\) returned 2"
    ):
        Tuner(trainer()).lr_find(Several())


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"mode": "random"}, ValueError, "'exponential' or 'linear', but got 'random'"),
        ({"min_lr": 1.0, "max_lr": 0.1}, ValueError, "0 < min_lr < max_lr"),
        ({"method": "test"}, MisconfigurationException, "'fit' only"),
        ({"dataloaders": [1]}, MisconfigurationException, "train_dataloaders"),
    ],
    ids=["mode", "rates", "method", "loaders"],
)
def test_a_search_that_makes_no_sense_is_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        Tuner(trainer()).lr_find(Model(), **options)


def test_a_fast_dev_run_searches_nothing():
    with pytest.warns(UserWarning, match="fast_dev_run"):
        assert Tuner(trainer(fast_dev_run=True)).lr_find(Model()) is None


def test_the_losses_can_be_drawn():
    matplotlib = pytest.importorskip("matplotlib", reason="an optional package")
    matplotlib.use("agg")
    finder = LRFinder("exponential", 1e-4, 1.0, 30)
    finder.results = {
        "lr": [finder.lr_at(step) for step in range(30)],
        "loss": [1.0 / (step + 1) for step in range(30)],
    }
    (axes,) = finder.plot(suggest=True).axes
    assert (axes.get_xscale(), len(axes.lines)) == ("log", 2)


def test_the_trainers_flag_searches_before_it_fits():
    model = Model(batch_size=8)
    trainer(max_epochs=1, auto_lr_find=True).fit(model)
    assert model.hparams.lr != 0.1
    assert model.seen[0] == (8, model.hparams.lr)


# The batch size.


class Greedy(Model):
    """There is memory for 12 samples."""

    def training_step(self, batch, batch_idx):
        if len(batch) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    test_step = predict_step = validation_step

    def on_validation_start(self):
        self.began = True


def scale(model, **options):
    return Tuner(trainer(max_epochs=1)).scale_batch_size(model, **options)


def test_the_batch_size_is_doubled_until_memory_ends():
    model = Greedy()
    assert (scale(model), model.hparams.batch_size) == (8, 8)


def test_the_batch_size_is_then_searched_for():
    model = Greedy()
    assert (scale(model, mode="binsearch", margin=0.0), model.hparams.batch_size) == (12, 12)


def test_a_margin_is_left_for_safety():
    assert scale(Greedy(), mode="binsearch", margin=0.25) == 9


def test_a_first_size_that_is_too_large_is_made_smaller():
    assert scale(Greedy(), init_val=64) == 8


def test_more_than_all_samples_at_once_is_of_no_use():
    assert scale(Model()) == 64


def test_the_search_ends_after_its_trials_and_at_the_largest_size():
    assert scale(Model(), max_trials=3) == 8
    assert scale(Model(), max_val=20) == 20


def test_module_and_trainer_are_as_they_were_but_for_the_batch_size():
    model, outer = Greedy(), trainer(max_epochs=1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = vars(outer).copy()
    Tuner(outer).scale_batch_size(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert (model.seen, vars(outer)) == ([], attributes)


def test_another_error_is_raised_and_the_batch_size_as_it_was():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            if len(batch) > 4:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    model = Broken(batch_size=3)
    with pytest.raises(RuntimeError, match="broken"):
        scale(model)
    assert model.hparams.batch_size == 3


def test_too_little_memory_for_a_single_sample_is_said():
    def attempt(size):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RuntimeError, match="no size that fits into memory, down to 1"):
        largest(attempt, 4, max_trials=25, max_val=100, bisect=False)


@pytest.mark.parametrize("limit", [1, 37, 64])
@pytest.mark.parametrize("first", [2, 50])
def test_bisection_finds_the_limit_itself(limit, first):
    def attempt(size):
        if size > limit:
            raise MemoryError
        return 1000

    assert largest(attempt, first, max_trials=50, max_val=4096, bisect=True) == limit


class Data(pl.LightningDataModule):
    def __init__(self, batch_size=2):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 64), batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_every_function_can_be_tried_with_a_data_module(method):
    class Plain(BoringModel):
        def training_step(self, batch, batch_idx):
            if len(batch) > 12:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().training_step(batch, batch_idx)["loss"]

        validation_step = test_step = predict_step = training_step

    data = Data()
    assert (scale(Plain(), datamodule=data, method=method), data.batch_size) == (8, 8)


def test_a_data_module_may_stand_in_the_place_of_loaders():
    data = Data()
    assert (scale(BoringModel(), train_dataloaders=data), data.batch_size) == (64, 64)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"mode": "random"}, ValueError, "'power' or 'binsearch', but got 'random'"),
        ({"margin": 1.0}, ValueError, "a share, at least 0 and below 1, but got 1.0"),
        ({"init_val": 0}, ValueError, "at least 1, but got 0"),
        ({"method": "train"}, ValueError, "'fit', 'validate', 'test', 'predict', not 'train'"),
        ({"train_dataloaders": [1]}, MisconfigurationException, "loaders that are made already"),
        ({"batch_arg_name": "size"}, MisconfigurationException, "have 'size'"),
        ({"method": "test", "train_dataloaders": [1]}, MisconfigurationException, "give dataloaders"),
    ],
    ids=["mode", "margin", "init_val", "method", "loaders", "attribute", "other loaders"],
)
def test_a_batch_size_that_cannot_be_found_is_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        scale(Model(), **options)


# What is put back.


def test_weights_gradients_modes_and_collections_are_put_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network.seen, network.nested = [1], {"a": [1]}
    network[1].eval()
    network(torch.ones(1, 2)).sum().backward()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradient = network[0].weight.grad
    values, seen = gradient.clone(), network.seen
    with left_as_it_was(network):
        network.train()
        network(torch.randn(4, 2)).sum().backward()
        torch.optim.SGD(network.parameters(), lr=1.0).step()
        network.seen.append(2)
        network.nested["a"].append(2)
        network.new = 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network[0].weight.grad is gradient
    assert torch.equal(gradient, values)
    assert (network[0].training, network[1].training) == (True, False)
    assert network.seen is seen
    assert (seen, network.nested, hasattr(network, "new")) == ([1], {"a": [1]}, False)


def test_what_was_there_is_put_back_after_an_error_too():
    layer = nn.Linear(1, 1)
    before = layer.weight.clone()

    def fail():
        with left_as_it_was(layer):
            nn.init.zeros_(layer.weight)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert torch.equal(layer.weight, before)
