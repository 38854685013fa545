"""Attention: its implementations, their forward-mode rules, and rows whose tokens lie over several devices."""
