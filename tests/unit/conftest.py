"""Unit tests start no server."""

from hypothesis import HealthCheck, settings

# On a busy machine one example may take long; that says nothing about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
