"""Label folders and what is measured of a backbone: who may read the test split, costs, latency."""
