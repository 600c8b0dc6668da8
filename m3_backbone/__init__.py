"""The frozen Matryoshka multimodal model: image + question -> answers and outcomes at every scale."""
