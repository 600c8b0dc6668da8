"""Benchmarks of labelling, evaluation and adaptive answers."""
