"""Stage ``export``: what leaves the house."""
