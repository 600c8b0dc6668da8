"""Cascades and hybrids."""
