"""Load on a cluster: clients, the processes that they run in, and what came of a run."""
