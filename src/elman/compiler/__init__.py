"""From a cell's step to a kernel: trace, differentiate, schedule, emit, build."""
