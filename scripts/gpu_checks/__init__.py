"""What scripts/verify_gpu looks at: one function per check, each run in a process of its own."""
