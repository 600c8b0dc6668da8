"""Networks: one file each, all called with a batch and returning one logit per scale."""
