"""Whom does a failure concern? What is wrong with one run must not hold up the others; an outage stops all."""

from pipeline.errors import UserError

# MLflow's words for a fault in what was sent. For a server that is gone, a locked database or a wrong password it has
# others.
_FAULTS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")


class RunRefused(UserError):
    """MLflow answers, but does not take this run."""


def of_one_run(error: BaseException) -> bool:
    """Whether another run may well be taken: MLflow found fault with the request, or we with the run's files."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _FAULTS
    if isinstance(error, OSError):  # the network's errors are of this class too
        return isinstance(error, FileNotFoundError | PermissionError)
    return isinstance(error, LookupError | TypeError | ValueError)
