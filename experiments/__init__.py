"""What people run: label, train, evaluate, run, answer, parity, train_backbone; tasks, scorers, fronts,
reports."""
