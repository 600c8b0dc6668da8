"""Frozen Matryoshka multimodal models: image and question -> answers and outcomes at every scale."""
