"""Inputs that benchmarks make themselves."""
