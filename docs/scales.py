"""Draws the README's picture of the scales: python docs/scales.py

The counts in figures/scales.csv are of the scales in last.ckpt of three runs of docs/results.md,
VGG-16 on CIFAR-10 (JPEG), 8 epochs: shares of the 4,224 channels by the logarithm of their
importance.
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # after the backend is chosen

FIGURES = Path(__file__).parent / "figures"
TITLES = {
    "ucs": "no penalty (UCS)",
    "rni": "RNI",
    "rni_20": "RNI, 20 times the weight",
}


def draw(source: Path, target: Path) -> None:
    """One histogram for each method, with the same axes."""
    with source.open() as lines:
        rows = list(csv.DictReader(lines))
    plt.rcParams.update({"svg.hashsalt": "scales", "font.size": 9, "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, len(TITLES), figsize=(8, 2.1), sharex=True, sharey=True)
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        mine = [row for row in rows if row["method"] == name]
        left = [float(row["log10_from"]) for row in mine]
        share = [100 * float(row["share"]) for row in mine]
        axis.bar(left, share, width=0.25, align="edge", color="#2a6f97")
        axis.set_title(title, fontsize=9)
        axis.set_xticks([-6, -4, -2, 0], ["$10^{-6}$", "$10^{-4}$", "0.01", "1"])
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("importance of a channel")
    axes[0].set_ylabel("% of channels")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(FIGURES / "scales.csv", FIGURES / "scales.svg")
