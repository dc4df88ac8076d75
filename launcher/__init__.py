"""Decides what to start and starts it; imports nothing heavy."""

__version__ = "0.1.0"
