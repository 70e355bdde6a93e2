"""The embedded backend: real servers as child processes on loopback."""
