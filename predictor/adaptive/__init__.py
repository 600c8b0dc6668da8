"""A predictor in front of a backbone, as one object."""
