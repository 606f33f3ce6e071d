"""What a network is worth: the bound on its likelihood over a data set."""
