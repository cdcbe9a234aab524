"""What all executions share: the train state, streams, held-back updates, the protocol."""
