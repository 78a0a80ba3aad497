"""TraceNet."""
