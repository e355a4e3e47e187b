"""Where and how a run computes: device, arithmetic, memory layout, the state of the process."""
