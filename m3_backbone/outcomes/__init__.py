"""The outcome table: schema, table, shards, manifest, and the labels made of it."""
