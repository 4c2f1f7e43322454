"""What pruning gains in speed; reads `engines`, `speed`, `networks`, `comparing`."""
