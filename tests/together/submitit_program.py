"""A training that submitit runs as a job: preempted, it saves, is put back into the queue, and goes on."""

import os
import signal

import submitit
import torch

from camshaft import Checkpoint, Engine, Events, OptimizerStep, Preemption
from camshaft.handlers.preemption import PREEMPTED


class Training(submitit.helpers.Checkpointable):  # submitit keeps its arguments and calls it anew
    def __call__(self, directory, preempted_at=None):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(), torch.nn.Linear(2, 1))
        optimizer = torch.optim.Adam(model.parameters())
        trainer = Engine(lambda engine, batch: model(batch).square().mean()).attach(
            OptimizerStep(optimizer),
            Checkpoint(directory, model=model, optimizer=optimizer),
            Preemption([signal.SIGUSR2]),
        )
        iterations = []
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: iterations.append(trainer.state.iteration))

        @trainer.on(Events.ITERATION_STARTED(once=preempted_at or 10_000))
        def preempt(engine):
            os.kill(os.getpid(), signal.SIGUSR2)  # as SLURM does

        try:
            trainer.run(torch.ones(6, 4, 2), max_epochs=2)
        except SystemExit as left:
            if left.code == PREEMPTED:  # the checkpoint is on the disk, and the signal is submitit's again
                signal.raise_signal(signal.SIGUSR2)
            raise
        return iterations, [value for tensor in model.state_dict().values() for value in tensor.flatten().tolist()]
