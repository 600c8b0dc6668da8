"""Training and tuning of predictors; trained predictors on disk."""
