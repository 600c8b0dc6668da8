"""Adaptive models: a predictor and a backbone in one object."""
