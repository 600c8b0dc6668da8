"""Cascades, and hybrids of a predictor and a cascade."""
