"""What callers and backends hand to each other: layouts, batches, weights, statistics."""
