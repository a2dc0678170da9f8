"""Stage `sweep`: every point of a suite's sweep, a grid or a search -> results/SUITE/sweep."""

from pipeline.cli import run_stage
from stages.train import main

if __name__ == "__main__":
    run_stage(lambda: main("sweep", __doc__))
