"""From estimates to scales: prices, switches and fronts."""
