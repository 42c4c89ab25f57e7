"""The version, here alone: read by the build and sent as part of the User-Agent."""

__version__ = "0.2.0"
