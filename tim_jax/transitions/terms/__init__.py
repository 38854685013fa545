"""Terms that stand beside any objective's own loss, on samples of the student."""
