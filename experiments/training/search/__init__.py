"""Searches over what a person can set: spaces, studies that many processes share, what they leave behind."""
