"""The benchmarks: one file each, on the `Task` of `base`; `registry` knows them by name."""
