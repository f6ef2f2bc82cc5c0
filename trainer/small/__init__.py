"""Small policies made from nothing: presets, tokenizer, first weights, supervised start."""
