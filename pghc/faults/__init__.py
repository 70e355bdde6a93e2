"""Faults: one at a time, and randomised ones from a seed."""
