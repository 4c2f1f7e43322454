"""Measure how much faster pruned networks are: python -m rni_pl.benchmark checkpoint=RUN."""

from rni_pl.cli import benchmark

if __name__ == "__main__":
    benchmark()
