"""A worker process: one loop, one native engine, its share of the partitions."""

from fetchbox.worker.run import run

__all__ = ["run"]
