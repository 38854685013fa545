"""Frozen pretrained parts, and the conversion of published weights."""
