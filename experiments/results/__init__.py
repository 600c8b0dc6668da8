"""Files of an evaluation: writing and reading of metrics, resamples and run folders."""
