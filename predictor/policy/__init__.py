"""Policies that turn estimates into scales: prices, switches and fronts."""
