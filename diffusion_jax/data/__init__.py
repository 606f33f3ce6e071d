"""Where examples come from, and which of them make up a batch."""
