"""img2dataset into webdataset shards, bodies as they came: `python FILE URL_LIST OUT CONCURRENCY`."""

from __future__ import annotations

import sys

from img2dataset import download

PROCESSES = 2


def main(url_list: str, out: str, concurrency: str) -> int:
    """Downloads every URL of the list into tar shards."""
    download(
        url_list=url_list,
        output_folder=f"{out}/shards",
        input_format="txt",
        output_format="webdataset",
        processes_count=PROCESSES,
        thread_count=max(int(concurrency) // PROCESSES, 1),
        resize_mode="no",
        disable_all_reencoding=True,
        number_sample_per_shard=1000,
        timeout=600,
        retries=0,
        enable_wandb=False,
        compute_hash=None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
