"""What an attention module is made of, and what of it belongs to its heads; `groups.attention` puts it together."""
