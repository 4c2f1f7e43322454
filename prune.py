"""Prune a trained network and fine-tune it: python prune.py checkpoint=RUN prune.ratio=0.9."""

from rni_pl.cli import prune

if __name__ == "__main__":
    prune()
