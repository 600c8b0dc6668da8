"""Tasks of lmms-eval, whose own code runs in a worker process in lmms-eval's environment."""
