"""What can be claimed of predictors: fronts, bounds, intervals and figures of merit, as plain data."""
