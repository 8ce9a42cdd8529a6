"""Parts of the study of the queueing formulas: random pools, fresh seeds, replayed traces."""
