"""The papers' benchmarks, built from their datasets: a manifest of what is to be measured, and queues of jobs for `batch`."""
