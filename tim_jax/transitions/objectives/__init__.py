"""The objectives: the table of them, and those that are more than choices on the axes of `objective.py`."""
