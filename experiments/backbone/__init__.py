"""Data for training the embedded backbones, and what parity with the authors' code measures."""
