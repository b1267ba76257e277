"""Configuration: defaults, a TOML file, the environment, checked as a whole before anything starts."""

from fetchbox.config.addresses import default_socket, format_address, is_loopback, parse_address, parse_hub_url, url_without_secrets
from fetchbox.config.describe import Setting, describe
from fetchbox.config.fetching import Auth, Fetch, JobStorage, JobType, Proxy, ProxyChoice, ProxyPool, Storage
from fetchbox.config.layers import find_file, variable_name
from fetchbox.config.load import load, load_library
from fetchbox.config.models import Broker, Callbacks, Client, Config, Hub, Ledger, Retention, Server, Tasks, Telemetry, Worker
from fetchbox.config.wire import engine_options, from_child_json, hub_options, hub_socket, hub_storage, hub_url, to_child_json

__all__ = [
    "Auth",
    "Broker",
    "Callbacks",
    "Client",
    "Config",
    "Fetch",
    "Hub",
    "JobStorage",
    "JobType",
    "Ledger",
    "Proxy",
    "ProxyChoice",
    "ProxyPool",
    "Retention",
    "Server",
    "Setting",
    "Storage",
    "Tasks",
    "Telemetry",
    "Worker",
    "default_socket",
    "describe",
    "engine_options",
    "find_file",
    "format_address",
    "from_child_json",
    "hub_options",
    "hub_socket",
    "hub_storage",
    "hub_url",
    "is_loopback",
    "load",
    "load_library",
    "parse_address",
    "parse_hub_url",
    "to_child_json",
    "url_without_secrets",
    "variable_name",
]
