"""Settings of every command: names, types, ranges and units, one class for each group of settings.

The values are in `conf/`; `settings.check` validates a configuration against these classes before a command
reads, runs or deletes anything. The text below a field is its description, in `--help` and in messages.
Fields of type `Built` describe objects: their arguments are checked against the signature of the class
(`settings.check`).
"""
