"""The commands on a trained run: samples, likelihood, and what they share."""
