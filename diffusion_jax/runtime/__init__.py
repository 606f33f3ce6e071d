"""Files, text and the environment, for all other packages; imports none of them."""
