"""Offline: from a run's metrics file to what a person looks at. Imports neither torch nor MPI."""
