"""What people run: label, train, evaluate, run, answer, parity, train_backbone; tasks, scorers, fronts,
reports."""

import os

# OpenMP's threads sleep between two operations instead of spinning: with another busy process on the cores,
# spinning makes a training of small networks several times as long. Read when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
