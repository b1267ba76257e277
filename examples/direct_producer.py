"""Publishes tasks straight to an Iggy server, past the ingress: python examples/direct_producer.py iggy://user:password@host:8090 URL…

The job appears in the ledger with its first outcome. Needs fetchbox[iggy].
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
import zlib
from urllib.parse import unquote, urlsplit

from apache_iggy import AutoLogin, IggyClient, SendMessage, TcpConfig

from fetchbox.proto import DownloadTask

STREAM, TOPIC = "fetchbox", "jobs.tasks"


async def publish(broker: str, urls: list[str]) -> str:
    """Publishes a task per URL; the id of their job."""
    parts = urlsplit(broker)
    login = AutoLogin.username_password(unquote(parts.username or ""), unquote(parts.password or ""))
    client = IggyClient(TcpConfig(server_address=f"{parts.hostname}:{parts.port or 8090}", auto_login=login))
    await client.connect()
    topic = await client.get_topic(STREAM, TOPIC)
    if topic is None:
        raise SystemExit(f"there is no topic {TOPIC}: run `fetchbox streams provision`")
    job_id = str(uuid.uuid4())
    tasks = [
        DownloadTask(job_id=job_id, url=url, resource_id=f"r{index}", resource_index=index, resources_total=len(urls))
        for index, url in enumerate(urls)
    ]
    partition = zlib.crc32(job_id.encode()) % topic.partitions_count
    await client.send_messages(STREAM, TOPIC, partition, [SendMessage(task.SerializeToString()) for task in tasks])
    return job_id


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    print(asyncio.run(publish(sys.argv[1], sys.argv[2:])), flush=True)
    # Threads of apache-iggy may still run, and abort a process whose interpreter is being taken down.
    os._exit(0)
