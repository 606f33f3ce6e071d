"""Sources of examples, and the choice of those that make up a batch."""
