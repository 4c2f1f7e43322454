"""What pruning gains in speed: `timing`, on `engines`, of `networks`, `comparing` them."""
