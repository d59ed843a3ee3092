"""The engine that follows the log: batches, cursors, rebuilds. Read `batch.py` first."""
