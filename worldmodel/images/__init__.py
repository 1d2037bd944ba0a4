"""Image data sets, their codes, and images generated from a prior over those codes."""
