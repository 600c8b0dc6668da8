"""Console script, entry point of commands, help, messages of errors, next commands."""
