"""Views for people: plans, machines, benchmarks and the progress of a run, as text or drawings."""
