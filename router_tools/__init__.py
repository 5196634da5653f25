"""Commands around a router that a server does not need: train, merge, deploy, evaluate, smoke."""
