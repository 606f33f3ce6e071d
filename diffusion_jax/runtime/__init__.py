"""Files, text and the environment: what every room may use; imports none of ours."""
