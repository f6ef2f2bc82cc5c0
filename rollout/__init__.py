"""The policy acting: episodes, renderer, engines, version window."""
