"""Evaluation of a network: its likelihood over a data set, and the quality of samples."""
