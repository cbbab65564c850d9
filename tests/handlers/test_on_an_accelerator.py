"""What only an accelerator can show of handlers that are tested elsewhere: fp16, pinned memory, fused optimizers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft.engine import Engine, Events
from camshaft.handlers import AMP, Checkpoint, Device, GradientClipping, OptimizerStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def loader(**options):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=8, **options)


def trained(*handlers, data=None, max_epochs=2, at_each_iteration=lambda engine: None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **options)
    engine = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    engine.attach(OptimizerStep(optimizer), Device("cuda"), *[make(model, optimizer) for make in handlers])
    engine.add_event_handler(Events.ITERATION_COMPLETED, at_each_iteration)
    engine.run(data or loader(), max_epochs=max_epochs)
    return [parameter.detach().cpu() for parameter in model.parameters()]


def fp16(model, optimizer):
    return AMP("fp16")


def clipping(model, optimizer):
    return GradientClipping(0.5)


def test_fp16_learns_what_single_precision_does():
    torch.testing.assert_close(trained(fp16, clipping), trained(clipping), rtol=0, atol=0.05)


def test_a_run_in_fp16_that_is_resumed_ends_in_the_same_bits(tmp_path):
    def kept_in(name):
        return lambda model, optimizer: Checkpoint(tmp_path / name, model=model, optimizer=optimizer)

    whole = trained(fp16, kept_in("whole"))
    trained(fp16, kept_in("parts"), max_epochs=1)
    torch.testing.assert_close(trained(fp16, kept_in("parts")), whole, rtol=0, atol=0)


@pytest.mark.parametrize("precision", [(), (fp16,)], ids=["float32", "fp16"])
def test_a_fused_optimizer_makes_the_same_steps(precision):
    fused = trained(*precision, clipping, fused=True)
    torch.testing.assert_close(fused, trained(*precision, clipping), rtol=0, atol=1e-3)


def test_batches_from_pinned_memory_are_the_same():
    seen = []
    pinned = trained(data=loader(pin_memory=True), at_each_iteration=lambda engine: seen.append(engine.state.batch))
    torch.testing.assert_close(pinned, trained(), rtol=0, atol=0)
    assert all(batch[0].device.type == "cuda" for batch in seen)
