"""The training of a network: state, optimiser, train step, loop, saving."""
