"""An adaptive model in use: answers and published folders."""
