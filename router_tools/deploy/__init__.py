"""`deploy`: brings a Space on the hub to the declared state, and checks it there."""

from router_tools.deploy.run import DeployOptions, deploy

__all__ = ["DeployOptions", "deploy"]
