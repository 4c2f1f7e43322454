"""Train a network with a sparsity regulariser: python train.py method=rni arch=resnet56."""

from rni_pl.cli import train

if __name__ == "__main__":
    train()
