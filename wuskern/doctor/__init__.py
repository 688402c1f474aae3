"""``wuskern doctor``: the backend that runs each op here, and why."""

from wuskern.doctor.report import Line, Report, doctor, environment, package_version, processor

__all__ = ["Line", "Report", "doctor", "environment", "package_version", "processor"]
