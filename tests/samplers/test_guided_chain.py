"""Guided chains: against an ODE solver, closed forms, and the chains at their ends."""
