"""Parts of the benchmarks that drive both models: decode, handoff, overlap, pair."""
