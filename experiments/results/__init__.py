"""What an evaluation leaves on disk, and reading it back."""
