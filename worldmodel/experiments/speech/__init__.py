"""Speech on the same core: codes, other voices, a prior, and what the codes know (first paper, section 4.3)."""
