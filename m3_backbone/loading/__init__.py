"""Reading checkpoints in the authors' layout."""
