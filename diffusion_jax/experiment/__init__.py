"""From a config to the parts that it describes, each checked."""
