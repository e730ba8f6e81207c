"""MPI simulator of FedH2L: participants with unlike models and unlike data learn from each other's posteriors.

FedH2L is due to Li, Zhou, Wang, Mi and Hospedales, "FedH2L: Federated Learning with Model and Statistical
Heterogeneity", arXiv 2101.11296. Importing this package does no work: no torch, no MPI.
"""

__version__ = "0.1.0"
