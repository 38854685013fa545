"""From what is asked for to files: prompts and labels, images in batches, layouts that evaluators read."""
