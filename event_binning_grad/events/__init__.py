"""Events: arrays, stateful decoders, clocks, windows and recordings."""
