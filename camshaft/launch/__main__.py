"""`python -m camshaft.launch`: the same as `camshaft launch`."""

import argparse
import sys

from camshaft.launch.program import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m camshaft.launch", description="Run a program on many processes.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
