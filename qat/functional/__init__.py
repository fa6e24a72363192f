"""Pure functions: the arithmetic of quantization, without modules and without state."""
