"""What is asked for, drawn and written: prompts and labels, images in batches, files as evaluators read them."""
