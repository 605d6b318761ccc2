"""Attention sinks: which keys are sinks (`detection`), how stable they are, and what that makes of a token's weight."""
