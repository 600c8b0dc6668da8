"""Baselines, negative controls and predictors built on scikit-learn."""
