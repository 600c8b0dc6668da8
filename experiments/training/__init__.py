"""Trained predictors on disk, and how a configuration finds them."""
