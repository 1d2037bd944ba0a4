"""Recorded and synthesized speech: files, corpora and batches."""
