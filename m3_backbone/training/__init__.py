"""Training of the embedded backbones."""
