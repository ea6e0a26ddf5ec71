"""Make a config real: quantise each layer, keep what was computed, assemble candidates."""
