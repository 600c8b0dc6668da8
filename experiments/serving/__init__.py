"""Use of an adaptive model: answers and published folders."""
