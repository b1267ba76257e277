"""Where tasks, outcomes and job records travel: the connection to the hub, which holds the embedded streams."""

from fetchbox.broker.hub import HubConnection, hub_client_options

__all__ = ["HubConnection", "hub_client_options"]
