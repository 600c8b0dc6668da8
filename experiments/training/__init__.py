"""Trained predictors on disk, found from the configuration."""
