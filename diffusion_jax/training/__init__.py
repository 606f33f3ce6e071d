"""The training of a network: state, optimiser, step, checkpoints, loop."""
