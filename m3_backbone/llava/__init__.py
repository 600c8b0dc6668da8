"""M3: LLaVA whose visual tokens are pooled to the scales of a ladder."""
