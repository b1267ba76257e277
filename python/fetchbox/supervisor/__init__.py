"""The parent of every role: execs children, watches, restarts and drains them. It never loads the native module and touches no data."""

from fetchbox.supervisor.policy import Policy
from fetchbox.supervisor.roles import plan
from fetchbox.supervisor.run import Supervisor, child_command

__all__ = ["Policy", "Supervisor", "child_command", "plan"]
