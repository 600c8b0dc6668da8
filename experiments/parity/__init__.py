"""Comparison of this implementation with the authors' code."""
