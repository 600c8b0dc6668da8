"""Backbones whose scale is chosen before the vision pass: resolutions and tiles."""
