"""Training of the embedded backbones, their variants and their model card."""
