"""Traffic generators, the demo and the benchmarks. Not part of the installed product."""
