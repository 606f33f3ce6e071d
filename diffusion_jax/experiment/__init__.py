"""The parts that a config describes, each checked."""
