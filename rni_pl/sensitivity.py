"""Accuracy against the share of each layer removed: python -m rni_pl.sensitivity checkpoint=RUN."""

from rni_pl.cli import sensitivity

if __name__ == "__main__":
    sensitivity()
