"""Every table and figure of a paper, from a committed list of commands."""
