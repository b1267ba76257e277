"""Where tasks, outcomes and job records travel: the connection to the hub, which holds the embedded streams, or to an Iggy server."""

from fetchbox.broker.hub import HubConnection, hub_client_options
from fetchbox.broker.streams import Streams

__all__ = ["HubConnection", "Streams", "hub_client_options"]
