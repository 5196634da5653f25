"""Compares predicted plans with gold ones, as the benchmark that deployments are accepted by does.

gold rows → predictions (asked for, and kept as they come) → figures a row → means a bucket → thresholds → reports
"""

from router_tools.evaluate.predictions import Prediction
from router_tools.evaluate.run import EvaluateOptions, evaluate

__all__ = ["EvaluateOptions", "Prediction", "evaluate"]
