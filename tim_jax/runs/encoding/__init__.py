"""Examples encoded once, by a run's pretrained modules, to shards that training reads (data/sources/shards.py)."""
