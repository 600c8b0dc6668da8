"""Networks that map a batch to the outputs of an objective, such as one logit per scale."""
