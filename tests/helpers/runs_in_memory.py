"""A run as analysis reads it, of arrays that no file holds."""

import numpy as np

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis.run import Run

NAN = np.nan
ODD = [b"a$b$<&>", "été_neuf".encode(), b"torchvision:mobilenet_v3_large"]
SIZES = {"round": 4, "endpoint": 2, "class": 10, "bin": 10}


def made(folder, participants=3, domain_names=(b"art & <b>", b"a$x$b"), **given) -> Run:
    """A run of 4 rounds, evaluated after the second and the last, on a ring; what is not given is drawn by lot."""
    edges = [(i, (i + 1) % participants) for i in range(participants)] if participants > 1 else []
    sizes = {**SIZES, "participant": participants, "domain": len(domain_names), "edge": len(edges)}
    lots = np.random.default_rng(0)
    arrays = {scale: np.arange(size) for scale, size in sizes.items()}
    arrays |= {name: lots.uniform(0.1, 0.9, [sizes[dim] for dim in dims]) for name, dims in metrics.DIMENSIONS.items()}
    arrays |= {
        "domain_name": np.array(domain_names),
        "architecture": np.array([ODD[i % 3] for i in range(participants)]),
        "own_domain": np.arange(participants) % len(domain_names),
        "rank": np.arange(participants),
        "graph_edges": np.array(edges, dtype=np.int32).reshape(-1, 2),
        "graph_since_round": np.zeros(len(edges), np.int64),
        "bytes_sent": np.full((4, participants), 1024),
        "degree": np.full((4, participants), 2),
        "parameter_bytes": np.full(participants, 8192),
        "label_histogram": np.arange(10 * participants).reshape(participants, 10) % 7,
        "domain_histogram": np.eye(participants, len(domain_names), dtype=np.int64) * 30,
    }
    for name in ("accuracy", "loss", "accuracy_own", "accuracy_all", "accuracy_worst"):
        arrays[name][[0, 2]] = NAN
    arrays |= {name: np.array(values) for name, values in given.items()}
    config = {"method": {"name": "fedh2l"}}
    return Run(folder / "metrics.h5", metrics.RunMetrics({"rounds_planned": 4}, arrays, True), config)
