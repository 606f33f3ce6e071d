"""What a user looks at: pictures, metric logs, progress."""
