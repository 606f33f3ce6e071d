"""Evaluation of a network: its likelihood over a data set."""
