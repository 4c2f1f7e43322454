"""Where images come from: one function a data set."""
