"""Greedy and sampled answers, several prompts in one pass."""
