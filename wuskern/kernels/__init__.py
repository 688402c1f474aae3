"""Everything that knows a device: which code runs an op, and that code."""
