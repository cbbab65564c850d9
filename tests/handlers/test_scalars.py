import numpy as np
import torch

from camshaft.handlers.scalars import Scalars


def test_numbers_come_in_the_order_of_the_values_whatever_their_types():
    values = [torch.tensor(0.5), 3, torch.tensor([7]), np.float32(0.25), torch.tensor(True), torch.tensor(1.5)]

    assert Scalars(values).numbers() == [0.5, 3, 7, 0.25, 1, 1.5]


def test_large_integers_stay_exact():
    assert Scalars([torch.tensor(2**53 + 1), torch.tensor(0.5)]).numbers() == [2**53 + 1, 0.5]


def test_a_value_that_changes_later_is_shown_as_it_was():
    loss = torch.tensor(1.0)
    scalars = Scalars([loss])

    loss.zero_()

    assert scalars.numbers() == [1.0]


def test_a_tensor_with_a_graph_is_read_without_it():
    assert Scalars([2 * torch.ones(1, requires_grad=True)]).numbers() == [2.0]


def test_no_values_give_no_numbers():
    scalars = Scalars([])

    assert scalars.arrived
    assert scalars.numbers() == []
