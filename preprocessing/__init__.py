"""Photos in, training shards out. Knows nothing of Prefect and Ray."""
