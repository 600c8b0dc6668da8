"""M3 itself: LLaVA whose visual tokens are pooled to any scale of a ladder."""
