"""Trains with what Accelerate has prepared, on one process or two, and writes what came of it as JSON."""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from camshaft.engine import Engine, Events
from camshaft.engine.distributed import broadcast, gather
from camshaft.handlers import Checkpoint, DistributedSampling, GradientAccumulation, GradientClipping, OptimizerStep

torch.set_num_threads(1)
SAMPLES, BATCH = 24, 4  # of all processes together


def prepared(**options):
    """An accelerator, and a model, optimizer, loader and schedule that it has prepared."""
    torch.manual_seed(0)
    # Each batch is split among the processes, so that two of them do what one does.
    how = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, **options)
    accelerator = Accelerator(cpu=True, dataloader_config=how)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
    data = TensorDataset(torch.arange(SAMPLES), torch.randn(SAMPLES, 3), torch.randn(SAMPLES, 1))
    return accelerator, *accelerator.prepare(model, optimizer, DataLoader(data, BATCH, shuffle=True), schedule)


def leaving_it_whole(accelerator, model, optimizer, schedule):
    def step(engine, batch):
        _, x, y = batch
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        return loss.item()

    return Engine(step)


def returning_the_loss(accelerator, model, optimizer, schedule):
    def step(engine, batch):
        _, x, y = batch
        return (model(x) - y).square().mean()

    return Engine(step).attach(OptimizerStep(optimizer))


def weights_of(model):
    return [value for tensor in model.state_dict().values() for value in tensor.flatten().tolist()]


def trained(build, *handlers, **options):
    accelerator, model, optimizer, loader, schedule = prepared(**options)
    engine = build(accelerator, model, optimizer, schedule).attach(*handlers)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.extend(engine.state.batch[0].tolist()))
    engine.run(loader, max_epochs=2)
    return {
        "weights": weights_of(model),
        "seen": sorted(sample for part in gather(seen) for sample in part),
        "steps": engine.state.optimizer_step,
        "rate": optimizer.param_groups[0]["lr"],
    }


def resumed(build, killed_at, **options):
    """The order of samples and the weights of a run that is killed and goes on, after those of one that is not."""
    outcomes = []
    for kills in ([None], [killed_at, None]):
        directory = Path(broadcast(tempfile.mkdtemp()))
        seen = {}
        for kill in kills:
            accelerator, model, optimizer, loader, schedule = prepared(**options)
            engine = build(accelerator, model, optimizer, schedule)

            @engine.on(Events.ITERATION_COMPLETED)
            def note(engine, seen=seen):
                seen[engine.state.iteration] = engine.state.batch[0].tolist()

            @engine.on(Events.ITERATION_COMPLETED)
            def die(engine, kill=kill):
                if engine.state.iteration == kill:
                    raise KeyboardInterrupt

            often = Events.EPOCH_COMPLETED | Events.ITERATION_COMPLETED(every=3)
            kept = {"model": model, "optimizer": optimizer, "schedule": schedule}
            engine.attach(Checkpoint(directory, kept, at=often))
            try:
                engine.run(loader, max_epochs=3)
            except KeyboardInterrupt:
                assert kill is not None
        outcomes.append({"seen": [seen[iteration] for iteration in sorted(seen)], "weights": weights_of(model)})
    return outcomes


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "To go on where the run was")
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")
    mid_epoch, between_epochs = 10, 7
    results = {
        "left whole": trained(leaving_it_whole),
        "returned": trained(returning_the_loss),
        "clipped": trained(returning_the_loss, GradientClipping(1e-6)),
        "accumulated": trained(returning_the_loss, GradientAccumulation(3)),
        "shared again": trained(returning_the_loss, DistributedSampling()),
        "resumed": resumed(leaving_it_whole, mid_epoch),
        "resumed between epochs": resumed(leaving_it_whole, between_epochs),
        "resumed, returned": resumed(returning_the_loss, mid_epoch),
        "resumed, stateful": resumed(leaving_it_whole, mid_epoch, use_stateful_dataloader=True),
        "resumed between epochs, stateful": resumed(leaving_it_whole, between_epochs, use_stateful_dataloader=True),
    }
    Path(sys.argv[1]).write_text(json.dumps(results))
