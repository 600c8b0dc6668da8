"""Loading of checkpoints in the authors' layout and in that of this project."""
