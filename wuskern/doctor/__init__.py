"""What runs here, and why: ``wuskern doctor``."""

from wuskern.doctor.report import Line, Report, doctor, package_version, processor

__all__ = ["Line", "Report", "doctor", "package_version", "processor"]
