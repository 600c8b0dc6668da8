"""Decoding of greedy and sampled answers, with several prompts in one forward pass."""
