"""Evaluation of predictors: fronts, bounds, metrics and their intervals, without files or plots."""
