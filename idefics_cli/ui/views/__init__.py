"""Plans, machines, benchmarks and progress, drawn for people."""
