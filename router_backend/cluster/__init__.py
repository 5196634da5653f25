"""More than one machine: replicas of the whole app on Ray Serve. Only `replica.py` and a run need Ray."""
