"""What an exported model.py is written of: files of PyTorch, read as text by `runs.to_torch` and never imported.

An exported file is a transport, the sampler, the layers and a network, one after another, with the numbers of a run at
their head. Each is a module that runs by itself, and imports from the others what will stand in the same file.
"""
