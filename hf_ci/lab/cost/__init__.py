"""Whatever measures time and memory, counts what is computed, or simulates many GPUs."""
