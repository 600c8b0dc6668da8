"""Access to the test split, vision costs of old labels, latency of backbone and predictors."""
