"""JSON to batches."""
