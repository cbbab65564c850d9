"""A training program with a command line, in the style of Lightning's releases of early 2020.

    python examples/main.py                            # on the CPU
    python examples/main.py --gpus 2                   # on two GPUs; an error where there are none
    python examples/main.py --gpus 0 --max_epochs 3    # any other flag of the Trainer

It trains the module of seed_mnist.py.
"""

import sys
from argparse import ArgumentParser, Namespace

from seed_mnist import LightningMNISTClassifier

from camshaft.contrib.lightning import Trainer


def main(hparams: Namespace) -> None:
    model = LightningMNISTClassifier()
    trainer = Trainer.from_argparse_args(hparams, gpus=hparams.gpus)
    trainer.fit(model)


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--gpus", default=None)
    parser = Trainer.add_argparse_args(parser)
    parser.set_defaults(max_epochs=2)
    args = parser.parse_args()

    try:
        main(args)
    except ValueError as error:  # a flag that cannot be
        sys.exit(f"main.py: {error}")
