"""The engine: requests, the one decoding loop, the runner of forwards, and the `LLM` front door."""
