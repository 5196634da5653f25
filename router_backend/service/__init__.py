"""The one way to the model: loads it, admits requests, watches it."""
