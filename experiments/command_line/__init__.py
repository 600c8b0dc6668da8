"""What is around a command: script, entry point, help, messages of errors, commands that may come next."""
