"""From a checkpoint to one file that runs elsewhere; reads `folding`, `formats`, `exporting`."""
