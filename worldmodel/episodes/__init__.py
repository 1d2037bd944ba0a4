"""Episodes on disk and the batches made from them: numpy here, torch only where a batch is made."""
