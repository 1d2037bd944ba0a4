"""Dreams and environments that a person plays in the browser."""
