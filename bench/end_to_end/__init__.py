"""A click against the full network, on one processor: times, errors, memory, second clicks, cold start."""
