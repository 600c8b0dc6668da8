"""Predictors on scikit-learn, baselines and controls."""
