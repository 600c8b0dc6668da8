"""Tasks: where questions, images and reference answers come from."""
